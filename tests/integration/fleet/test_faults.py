"""What goes wrong between a server and the object store, under both policies:
nothing that was acknowledged is lost, no answer is another one, memory stays in
its bounds, and soon after the fault's end all is as before.

A campaign says how long each fault lasts (XCACHE_FLEET_FAULT_SECONDS), and then soon
is 10 seconds. In other runs each lasts until it was felt, and nothing depends on how
fast the machine is."""

import collections
import random
import re
import threading
import time

import grpc
import pytest
from xcache.v1 import common_pb2
from xcache.v1 import sessions_pb2 as spb

import harness
from clocks import FAKETIME, Clock
from fault_proxy import Fault
from fleet import Fleet
from talks import Backend, Talk, Talker, check_twin, connect, reason

pytestmark = pytest.mark.timeout(900)

SECONDS = harness.campaign("FLEET_FAULT_SECONDS", 0)
IS_CAMPAIGN = SECONDS > 0
RECOVERY_SECONDS = 10 if IS_CAMPAIGN else 120
THINK = 0.03 if IS_CAMPAIGN else 0.3
# Until a server has felt a fault: it waits for an answer for seconds.
FELT_SECONDS = 120
SHARED = common_pb2.DURABILITY_SHARED
LOCAL = common_pb2.DURABILITY_LOCAL
MIB = 1 << 20
CAP = 64 * MIB
# What has no share in the cap: threads' stacks, gRPC's buffers, allocators.
PROGRAM = 48 * MIB
FLAGS = ("--memory-bytes", CAP, "--threads", 1)

# Those with a share of 1 leave nothing that works.
FAULTS = {
    "latency of 10 s": Fault(delay=10),
    "some latency": Fault(delay=0.5),
    "5xx in bursts": Fault(share=0.6, status=500, code="InternalError"),
    "5xx always": Fault(status=503, code="ServiceUnavailable"),
    "throttling": Fault(share=0.8, status=503, code="SlowDown"),
    "resets": Fault(share=0.7, cut="reset"),
    "truncated bodies": Fault(share=0.7, cut="end"),
    "flipped bodies": Fault(share=0.5, flip=True),
    "silence": Fault(silent=True),
    "nobody there": Fault(refused=True),
}
TOTAL = {"5xx always", "silence", "nobody there", "store restarted"}


class Memory(threading.Thread):
    """The most that a server had resident."""

    def __init__(self, server):
        super().__init__()
        self.server = server
        self.at_start = self.most = server.resident_bytes()
        self.stop = threading.Event()
        self.start()

    def run(self):
        while not self.stop.wait(0.1):
            try:
                self.most = max(self.most, self.server.resident_bytes())
            except (FileNotFoundError, TypeError):
                return  # it has ended

    def check(self):
        self.stop.set()
        self.join()
        if not harness.sanitized():
            assert self.most <= self.at_start + 1.15 * CAP + PROGRAM, (
                f"{self.at_start} bytes at the start, {self.most} at most")


def goes_on(talkers, since):
    """Whether each has had a turn since then that is in the shared store."""
    return all(any(turn.at > since and turn.durability == SHARED
                   for talk in talker.all_talks for turn in talk.turns[-20:])
               for talker in talkers)


def wait_recovered(talkers, since):
    """Seconds that it took them."""
    while not goes_on(talkers, since):
        for talker in talkers:
            assert talker.problem is None, talker.problem
        assert time.monotonic() - since < RECOVERY_SECONDS, (
            "not recovered: " + ", ".join(
                f"{t.talks[0].name} {dict(t.backend.seen)}" for t in talkers))
        time.sleep(0.02)
    return max(min(turn.at for talk in talker.all_talks for turn in talk.turns
                   if turn.at > since and turn.durability == SHARED)
               for talker in talkers) - since


def refusals(talkers):
    """What was told of credentials, or times, that the store did not take."""
    return [text for talker in talkers for text in talker.backend.told
            if re.search(r"HTTP 40[13]", text)]


class Case:
    """One fault between one server and the store; another server looks on."""

    def __init__(self, name, server, witness, twin, seed, policy):
        self.name = name
        self.policy = policy
        self.server = server
        self.witness = witness
        self.twin = twin.client()
        rng = random.Random(seed)
        prefix = f"{policy}-{name}".replace(" ", "-").replace("%", "")
        self.talks = [Talk(f"{prefix}-{i}", "You know the words.",
                           rng.randrange(1 << 30)) for i in range(3)]
        self.talkers = []
        self.is_total = name in TOTAL

    def prepare(self):
        """Two talks of the server's, and one that it has not seen yet: it is to
        read that one through the fault."""
        for talk in self.talks:
            there = self.witness if talk is self.talks[2] else self.server
            backend = Backend(connect(there.address))
            backend.create(talk)
            for words in (250, 10):
                backend.ask(talk, talk.next_words(words, words),
                            talk.next_params())
        self.talkers = self.new_talkers()

    def new_talkers(self):
        return [Talker(Backend(connect(self.server.address),
                               patience=SECONDS + FELT_SECONDS +
                               RECOVERY_SECONDS), [talk], think=THINK)
                for talk in self.talks]

    def all_talks(self):
        return [talk for talker in self.talkers for talk in talker.all_talks]

    def seen(self):
        return sum((t.backend.seen for t in self.talkers),
                   start=collections.Counter())

    def has_stopped(self, since):
        """Whether somebody noticed that the store is away."""
        if self.policy == "strict":
            return self.seen()["UNAVAILABLE", "STORE_UNAVAILABLE"] > 0
        return any(turn.at > since and turn.durability == LOCAL
                   for talk in self.all_talks() for turn in talk.turns)

    def wait_felt(self, is_felt):
        harness.wait_until(
            lambda: is_felt() or any(t.problem for t in self.talkers),
            FELT_SECONDS, f"{self.name} to be felt")

    def run(self, begin, end, came_by=lambda: True):
        """The talk goes on while begin() and end() bring the fault about, and
        came_by() says whether it has met a request. Returns what is to be said
        of it."""
        memory = Memory(self.server.server)
        try:
            # Some of them are in the midst of it when it begins.
            for talker in self.talkers[:2]:
                talker.start()
            self.wait_felt(lambda: all(t.asked for t in self.talkers[:2]))
            begin()
            begun = time.monotonic()
            self.talkers[2].start()
            time.sleep(SECONDS)
            self.wait_felt(lambda: self.has_stopped(begun) if self.is_total
                           else came_by())
            end()
            ended = time.monotonic()
            took = wait_recovered(self.talkers, ended)
        finally:
            for talker in self.talkers:
                talker.stop.set()
        for talker in self.talkers:
            talker.finish()
        self.check()
        memory.check()
        turns = [turn for talk in self.all_talks() for turn in talk.turns
                 if begun < turn.at < ended]
        local = sum(turn.durability == LOCAL for turn in turns)
        return (f"{self.policy}, {self.name}: {len(turns)} turns meanwhile, "
                f"{local} of them local; back after {took:.1f} s; "
                f"{(memory.most - memory.at_start) / MIB:.0f} MiB more; "
                f"failed tries {dict(self.seen())}")

    def check(self):
        for talker in self.talkers:
            assert not talker.backend.no_hint, talker.backend.no_hint[0]
        if self.policy == "strict":
            for talk in self.all_talks():
                assert all(t.bits is None or t.durability == SHARED
                           for t in talk.turns)
        # The other server has it all, or soon has, and goes on with it; and so
        # does this one then.
        here, other = (Backend(connect(replica.address))
                       for replica in (self.server, self.witness))
        for talk in self.all_talks():
            wait_pushed(other, talk)
            other.ask(talk, "Where were we?", talk.next_params())
            check_twin(self.twin, talk)
            wait_pushed(here, talk)


def wait_pushed(backend, talk):
    """Until the server has the turns that another one may still have to push."""
    harness.wait_until(lambda: backend.get(talk).turn >= len(talk.turns),
                       RECOVERY_SECONDS, f"{talk.name} to be pushed")
    backend.check(talk)


def run_all(cases, what):
    """what(case) for each, at the same time; prints what they return."""
    problems, lines = {}, []

    def one(case):
        try:
            lines.append(what(case))
        except Exception as error:  # shown below
            problems[f"{case.policy}, {case.name}"] = error

    threads = [threading.Thread(target=one, args=[case]) for case in cases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print("", *filter(None, lines), sep="\n")
    if problems:
        pytest.fail("\n".join(f"{name}: {type(error).__name__}: {error}"
                              for name, error in problems.items()))


@pytest.fixture(scope="module")
def twin(tiny_model, tmp_path_factory):
    with harness.Server(tiny_model,
                        tmp_path_factory.mktemp("twin")) as server:
        yield server


@pytest.mark.parametrize("policy", ["strict", "prefer"])
def test_faults_on_the_way(tiny_model, tmp_path, store, twin, seed, policy):
    """Each between a server of its own and the store, all at once."""
    with Fleet(tiny_model, tmp_path, policy=policy, store=store,
               balanced=False, proxied=True,
               flags=FLAGS) as fleet:
        witness = fleet.add()
        cases = [Case(name, fleet.add(), witness, twin, seed + i, policy)
                 for i, name in enumerate(FAULTS)]

        def run(case):
            case.prepare()
            proxy = fleet.proxies[case.server.name]
            return case.run(lambda: proxy.inject(FAULTS[case.name]),
                            lambda: proxy.inject(Fault()),
                            came_by=lambda: proxy.faults >= 5)

        run_all(cases, run)
        for replica in fleet.replicas:
            metrics = replica.server.metrics()
            assert metrics.sum("xcache_corrupt_sessions_total") == 0
            replica.drain()


def both_policies(fleet, twin, seed, name):
    """A case for each, over the fleet's store."""
    cases = []
    for i, policy in enumerate(("strict", "prefer")):
        fleet.policy = policy
        fleet.prefix = f"{name}-{policy}/".replace(" ", "-")
        cases.append(Case(name, fleet.add(), fleet.add(), twin, seed + i,
                          policy))
    for case in cases:
        case.prepare()
    return cases


@pytest.fixture
def fleet(tiny_model, tmp_path, store):
    with Fleet(tiny_model, tmp_path, store=store, balanced=False,
               flags=FLAGS) as running:
        yield running


def test_the_store_is_killed_and_started(fleet, store, twin, seed):
    cases = both_policies(fleet, twin, seed, "store restarted")
    killed = threading.Barrier(2, action=store.kill)
    felt, back = [], threading.Event()

    def run(case):
        def end():
            felt.append(case)
            assert back.wait(180), "the store did not come back"
        return case.run(killed.wait, end)

    def restart():
        try:
            run_all(cases, run)
        except BaseException as error:  # shown below
            problems.append(error)

    problems = []
    runner = threading.Thread(target=restart)
    runner.start()
    # Both have felt it, or have a problem.
    harness.wait_until(lambda: len(felt) == len(cases) or problems, 180 + SECONDS,
                       "the kill")
    # From the main thread, with which it ends.
    if not problems:
        store.start()
    back.set()
    runner.join()
    if problems:
        raise problems[0]


def test_credentials_are_rotated(fleet, store, twin, seed):
    """As it is done right: nobody notices. And the wrong way round: the old ones
    are gone before the new ones are there."""
    cases = both_policies(fleet, twin, seed, "rotated")
    servers = fleet.replicas
    store.let_in("second", "seconds-secret")
    talkers = [talker for case in cases for talker in case.talkers]
    for talker in talkers:
        talker.start()
    for server in servers:
        server.write_credentials("second", "seconds-secret")
    # What was begun with the old ones is over.
    for _ in range(2):
        wait_recovered(talkers, time.monotonic())
    store.shut_out("replica")
    time.sleep(SECONDS)
    wait_recovered(talkers, time.monotonic())
    for talker in talkers:
        talker.finish()
    assert not refusals(talkers), refusals(talkers)[0]

    for case in cases:
        before, case.talks = case.talkers, [t.talks[0] for t in case.talkers]
        case.talkers = case.new_talkers()
        for talker, earlier in zip(case.talkers, before):
            talker.over = earlier.over
    for talker in (t for case in cases for t in case.talkers):
        talker.start()
    store.let_in("third", "thirds-secret")
    store.shut_out("second")
    shut_out = time.monotonic()
    time.sleep(SECONDS)
    for case in cases:
        case.wait_felt(lambda: case.has_stopped(shut_out))
    for server in servers:
        server.write_credentials("third", "thirds-secret")
    changed = time.monotonic()
    try:
        for case in cases:
            wait_recovered(case.talkers, changed)
    finally:
        for case in cases:
            for talker in case.talkers:
                talker.stop.set()
    for case in cases:
        for talker in case.talkers:
            talker.finish()
        # The witness has them too.
        case.check()
    # As other tests have them.
    store.let_in("replica", "replicas-secret")
    store.shut_out("third")


@pytest.mark.skipif(not FAKETIME.exists() or harness.sanitized(),
                    reason="libfaketime is not there, or is no friend of the "
                           "sanitizers")
@pytest.mark.parametrize("days", [2 / 24, -2 / 24], ids=["ahead", "behind"])
def test_a_clock_that_is_wrong(tiny_model, tmp_path, store, twin, seed, days):
    """By two hours, from the start, of one server of two; then it is put
    right."""
    clock = Clock(tmp_path)
    clock.set(days)
    with Fleet(tiny_model, tmp_path, store=store, balanced=False,
               flags=FLAGS) as fleet:
        case = Case("clock ahead" if days > 0 else "clock behind",
                    fleet.add(env=clock.env), fleet.add(), twin, seed,
                    "strict")
        case.prepare()
        print("\n" + case.run(lambda: None, lambda: clock.set(0)))
        assert not refusals(case.talkers), refusals(case.talkers)[0]


def test_what_two_sides_of_a_partition_say_is_kept(tiny_model, tmp_path, store,
                                                   twin, seed):
    """`prefer`: a server that is cut off goes on, and so does another one with
    the same session. The second one's turns stay; the first one's are a fork
    with a name of its own."""
    with Fleet(tiny_model, tmp_path, policy="prefer", store=store,
               balanced=False, proxied=True) as fleet:
        alone, other = fleet.add(), fleet.add()
        proxy = fleet.proxies[alone.name]
        here, there = (Backend(connect(r.address)) for r in (alone, other))
        talk = Talk("both", "You know the words.", seed)
        here.create(talk)
        here.ask(talk, talk.next_words(80, 80), talk.next_params())
        theirs = Talk("both", talk.system_prompt, seed + 1)
        theirs.turns, theirs.tokens = list(talk.turns), talk.tokens
        with proxy.injected(Fault(refused=True)):
            for _ in range(2):
                turn = here.ask(talk, talk.next_words(), talk.next_params())
                assert turn.durability == LOCAL
            assert there.ask(theirs, theirs.next_words(),
                             theirs.next_params()).durability == SHARED
        lifted = time.monotonic()

        def forks(backend):
            listed = backend.client.sessions.ListSessions(
                spb.ListSessionsRequest(page_size=100))
            return [s.id for s in listed.sessions
                    if s.id.startswith("both.fork-")]

        harness.wait_until(lambda: forks(there), RECOVERY_SECONDS, "the fork")
        for backend in (here, there):
            assert forks(backend) == forks(there)
            backend.check(theirs)
        talk.name, = forks(there)
        there.check(talk)
        here.check(talk)
        print(f"\nfork {talk.name} after {time.monotonic() - lifted:.1f} s")
        assert talk.name in alone.server.log()
        # Whoever held the fork's side is told.
        with pytest.raises(grpc.RpcError) as error:
            list(here.client.inference.Chat(
                harness.inference_pb2.ChatRequest(
                    session_id="both", messages=[harness.user("?")],
                    expected_turn=len(talk.turns))))
        assert reason(error.value) == "TURN_CONFLICT"
        # Both go on, on either server, with the bits of one that was alone.
        for one, first, second in ((talk, there, here), (theirs, here, there)):
            first.ask(one, "Where were we?", one.next_params())
            second.ask(one, "And then?", one.next_params())
        for number, one in enumerate((talk, theirs)):
            one.name = f"twin-of-both-{number}"
            check_twin(twin.client(), one)


def test_what_was_local_outlives_a_kill_in_the_partition(
        tiny_model, tmp_path, store, twin, seed):
    """`prefer`: turns that were acknowledged as local are pushed by the server's
    next life."""
    with Fleet(tiny_model, tmp_path, policy="prefer", store=store,
               balanced=False, proxied=True) as fleet:
        alone, other = fleet.add(), fleet.add()
        proxy = fleet.proxies[alone.name]
        backend = Backend(connect(alone.address))
        talk = Talk("killed", "You know the words.", seed)
        backend.create(talk)
        backend.ask(talk, talk.next_words(80, 80), talk.next_params())
        with proxy.injected(Fault(silent=True)):
            for _ in range(2):
                turn = backend.ask(talk, talk.next_words(), talk.next_params())
                assert turn.durability == LOCAL
            alone.kill()
            # It starts without the store, too.
            alone.start()
            backend.ask(talk, talk.next_words(), talk.next_params())
            alone.kill()
        alone.start()
        there = Backend(connect(other.address))
        harness.wait_until(lambda: there.get(talk).turn == 4,
                           RECOVERY_SECONDS, "the push")
        there.check(talk)
        there.ask(talk, "Where were we?", talk.next_params())
        check_twin(twin.client(), talk)

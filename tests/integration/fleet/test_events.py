"""Conversations go on while servers are killed, drained, added and removed: no
turn that was acknowledged is lost, none is applied twice, every answer has the
bits of a twin that nothing happened to, and who moves brings its cache along.

XCACHE_FLEET_EVENTS (25) is how many events; a campaign takes 300."""

import collections
import random
import time

from xcache.v1 import common_pb2

import harness
from fleet import Fleet
from talks import Backend, Talk, Talker, check_twins, connect

EVENTS = int(harness.campaign("FLEET_EVENTS", 25))
CLIENTS = 4
TALKS_EACH = 2
THINK = 0.3  # seconds at most, between turns
LEAST, MOST = 3, 5  # servers
# Words of a talk's first message: a cache that is worth to be moved.
LONG_PROMPT = 450


class Events:
    """What happens to the servers."""

    def __init__(self, fleet, rng):
        self.fleet = fleet
        self.rng = rng
        self.count = collections.Counter()
        # Address -> times at which a server there began without a cache: no
        # memory and no disk of before.
        self.new_at = collections.defaultdict(list)
        for _ in range(LEAST):
            self._add()

    def _add(self):
        replica = self.fleet.add()
        self.new_at[replica.address].append(time.monotonic())

    def happen(self):
        """One of them; when it returns, all servers are at work again."""
        servers = len(self.fleet.replicas)
        kind = self.rng.choice(
            ["kill", "kill", "lose", "drain"] +
            ["add"] * 2 * (servers < MOST) + ["remove"] * (servers > LEAST))
        self.count[kind] += 1
        if kind == "add":
            self._add()
        else:
            replica = self.rng.choice(self.fleet.replicas)
            if kind == "remove":
                self.fleet.retire(replica)
            else:
                self._interrupt(replica, kind)
        self.fleet.balancer.wait_healthy(len(self.fleet.replicas))
        return kind

    def _interrupt(self, replica, kind):
        if kind == "drain":
            replica.drain()
        else:
            replica.kill()
            # Until somebody notices.
            time.sleep(self.rng.uniform(0, 0.8))
        if kind == "lose":
            replica.lose_disk()
            self.new_at[replica.address].append(time.monotonic())
        replica.start()


def moved(talks, new_at):
    """Turns at another server than the one before, or at one that has lost all
    it had since."""
    out = []
    for talk in talks:
        for before, turn in zip(talk.turns, talk.turns[1:]):
            if turn.bits is None or not before.server:
                continue
            if turn.server != before.server or any(
                    before.at < at < turn.at for at in new_at[turn.server]):
                out.append(turn)
    return out


def test_conversations_go_on(tiny_model, tmp_path, seed):
    rng = random.Random(seed)
    with Fleet(tiny_model, tmp_path) as fleet:
        events = Events(fleet, rng)
        fleet.balancer.wait_healthy(LEAST)
        backends = [Backend(connect(fleet.balancer.address))
                    for _ in range(CLIENTS)]
        talkers = [Talker(backend, [
            Talk(f"talk-{i}-{k}", "You know the words.",
                 rng.randrange(1 << 30)) for k in range(TALKS_EACH)],
            long_prompt=LONG_PROMPT, think=THINK)
                   for i, backend in enumerate(backends)]
        for talker in talkers:
            talker.start()
        # Everybody has something to lose.
        harness.wait_until(
            lambda: all(t.asked > TALKS_EACH or t.problem for t in talkers),
            60, "first turns")
        for number in range(EVENTS):
            before = sum(t.asked for t in talkers)
            kind = events.happen()
            time.sleep(rng.uniform(0.1, 0.6))
            for talker in talkers:
                if talker.problem is not None:
                    talker.finish()  # raises it
            harness.wait_until(
                lambda: sum(t.asked for t in talkers) > before + CLIENTS or
                any(t.problem for t in talkers), 60,
                f"turns after event {number}, {kind}")
        for talker in talkers:
            talker.finish()
        talks = [talk for t in talkers for talk in t.all_talks]
        # Whichever server is asked, the conversation is as its client knows it.
        for talk in talks:
            Backend(connect(rng.choice(fleet.replicas).address)).check(talk)
        turns = [turn for talk in talks for turn in talk.turns]
        seen = sum((b.seen for b in backends), collections.Counter())
        travelled = moved(talks, events.new_at)
        report(events, talks, turns, travelled, seen, backends, fleet)
        assert not [text for b in backends for text in b.no_hint]
        for turn in turns:
            assert turn.bits is None or (
                turn.durability == common_pb2.DURABILITY_SHARED), turn.server
        for replica in fleet.replicas:
            metrics = replica.server.metrics()
            assert metrics.corrupt_pages() == 0
            assert metrics.sum("xcache_corrupt_sessions_total") == 0
            assert metrics.sum("xcache_mismatched_pages_total") == 0
            replica.drain()
    check_twins(tiny_model, tmp_path / "twin", talks)
    assert len(travelled) >= EVENTS
    assert sum(t.remote for t in travelled) > 0
    before = sum(t.before for t in travelled)
    reused = sum(t.reused for t in travelled)
    assert reused >= 0.95 * before, f"{reused} of {before} tokens"


def report(events, talks, turns, travelled, seen, backends, fleet):
    before = sum(t.before for t in travelled)
    reused = sum(t.reused for t in travelled)
    print(f"\n{sum(events.count.values())} events {dict(events.count)}, "
          f"{len(talks)} talks, {len(turns)} turns acknowledged, "
          f"{sum(b.learned for b in backends)} of them learned by reading, "
          f"{len(travelled)} at another server: {reused} of {before} tokens "
          f"reused ({reused / max(before, 1):.1%}), "
          f"{sum(t.remote for t in travelled)} from the shared tier; "
          f"failed tries {dict(seen)}; {len(fleet.objects())} objects")

"""What an operator sees of a fleet at work: every panel has numbers in it, every
alert has something to compare and is silent, and those that a fault of these
tests can cause are seen firing."""

import contextlib
import math
import os
import random
import re
import shutil
import subprocess
import threading
import time

import grpc
import pytest
from xcache.v1 import sessions_pb2 as spb

import harness
from clocks import FAKETIME, Clock
from disks import no_byte_left, small_disk
from fault_proxy import Fault
from fleet import Fleet
from model_fixtures import make_model
from monitoring import (ALERTS, BOARDS, PROMETHEUS, RECORDS, as_grafana_asks,
                        as_seconds)
from object_server import BUCKET
from prometheus import firing, prometheus, query
from talks import Backend, Talk, Talker, connect

pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None,
    reason="Debian's package prometheus is not installed")

OUR_RULES = as_seconds((PROMETHEUS / "rules.yaml").read_text())

PICTURE_SECONDS = harness.campaign("FLEET_PICTURE_SECONDS", 0)

# Alerts that nothing here brings about, and why. rules_test.yaml has a case of
# each.
NOT_HERE = {
    "XCacheFirstTokenSlow": "load",
    "XCacheTokensSlow": "load",
    "XCacheRequestsRefused": "load: test_operation.py",
    "XCacheTenantAtLimit": "load: test_tenants.py",
    "XCacheConnectionsRefused": "floods: test_floods.py",
    "XCacheDiskFillsUp": "whoever writes on this machine",
    "XCacheDiskTooSmall": "load",
    "XCacheCachePressure": "load",
    "XCacheMemoryShort": "load",
    "XCachePreempts": "load",
    "XCacheGone": "Prometheus finds none",
    "XCacheNotReady": "a large model",
    "XCacheDescriptorsShort": "a limit",
}
# These a full disk does: a test of their own.
FULL_DISK = {"XCacheDiskDegraded", "XCacheTurnsNotDurable",
             "XCachePagesNotWritten"}

TOKEN = "secret-of-acme"


def back_up(replica, folder):
    subprocess.run([harness.COMMAND, "store", "backup", folder, "--socket",
                    replica.folder / "store/operator.sock"], check=True, timeout=60,
                   stdout=subprocess.DEVNULL)


def make_sessions(fleet, names):
    """Conversations that come back from a disk, later."""
    for number, name in enumerate(names):
        client = connect(fleet.replicas[number % 3].address, TOKEN)
        client.sessions.CreateSession(spb.CreateSessionRequest(id=name))
        client.chat(name, f"{name}: a few words " * 60)
    for replica in fleet.replicas:
        replica.drain()
        replica.start()


@pytest.mark.timeout(600)
def test_every_query_has_an_answer(tiny_model, tmp_path, store):
    """Of three servers that chat, fail, spill and restore, each conversation at
    one after the other."""
    panels = {f"{name}: {panel['title']}: {target['expr']}":
              as_grafana_asks(target["expr"])
              for name, board in BOARDS.items() for panel in board["panels"]
              for target in panel["targets"]}
    names = [f"session-{i}" for i in range(90)]
    tokens = tmp_path / "tokens"
    tokens.touch(0o600)
    tokens.write_text(f"{TOKEN} acme\ntenant acme sessions=1000 requests=10\n")
    with Fleet(tiny_model, tmp_path, store=store, balanced=False,
               flags=("--token-file", tokens)) as fleet:
        for _ in range(3):
            fleet.add()
        make_sessions(fleet, names)
        back_up(fleet.replicas[0], tmp_path / "backup")
        clients = [connect(replica.address, TOKEN)
                   for replica in fleet.replicas]
        (tmp_path / "prometheus").mkdir()
        address = fleet.enter_context(prometheus(
            [r.server.metrics_address for r in fleet.replicas],
            tmp_path / "prometheus", OUR_RULES))
        silent = panels
        for number, name in enumerate(names):
            for turn in range(3):
                client = clients[(number + turn) % 3]
                client.chat(name, "go on")
                client.chat(name, "and on")
                with harness.fails_with(grpc.StatusCode.NOT_FOUND):
                    client.sessions.GetSession(
                        spb.GetSessionRequest(id="nobody"))
            # Not even NaN: something was divided by something.
            silent = {text: expression for text, expression in silent.items()
                      if not (values := query(address, expression)) or
                      not all(map(math.isfinite, values))}
            if not silent:
                break
            time.sleep(0.1)
        assert not silent, "\n".join(silent)
        for name in RECORDS:
            assert query(address, name), name
        # Of an alert, what it compares.
        for name, rule in ALERTS.items():
            for part in re.split(r"\nand (?:on \([\w, ]+\) )?", rule["expr"]):
                asked = re.sub(r"\s+(>|<|==) [\d.]+( \* [\d.]+)?$", "", part)
                if not part.startswith("absent"):
                    assert asked != part, name
                    assert query(address, as_seconds(asked)), name
        # Where a machine is slow, a scrape may be missed for a while.
        harness.wait_until(lambda: not alarming(address), 60, "silence")


@contextlib.contextmanager
def at_work(step):
    """Calls it over and over, in threads of its own."""
    stop = threading.Event()

    def run():
        while not stop.is_set():
            step()
            stop.wait(0.02)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def alarming(address):
    """Those that fire, but what load does, or whoever else writes on this
    disk."""
    return firing(address) - set(NOT_HERE)


class Alarm:
    """Which alerts were seen firing."""

    def __init__(self, address):
        self.address = address
        self.seen = set()

    def fire(self, *names, meanwhile=lambda: None):
        with at_work(meanwhile):
            for name in names:
                harness.wait_until(lambda: name in firing(self.address), 120,
                                   f"{name}: {firing(self.address)}")
                self.seen.add(name)

    def wait_up(self, target, value):
        """Until Prometheus has seen a server, or has not."""
        harness.wait_until(
            lambda: query(self.address,
                          f'up{{instance="{target}"}}') == [value],
            120, f"{target} to be up: {value}")

    def is_silent(self, *but, meanwhile=lambda: None):
        """Once what has been is over; but these."""
        left = set()

        def none():
            left.clear()
            left.update(alarming(self.address) - set(but))
            return not left

        try:
            with at_work(meanwhile):
                harness.wait_until(none, 120)
        except AssertionError:
            pytest.fail(f"these go on firing: {left}")


@pytest.mark.timeout(900)
def test_alerts_fire(tiny_model, models, tmp_path, store):
    """Each that a fault of these tests can cause, by the fault."""
    clock = Clock(tmp_path)
    with Fleet(tiny_model, tmp_path, store=store, balanced=False,
               proxied=True) as fleet:
        env = clock.env if FAKETIME.exists() else {}
        # An address for its page that stays: Prometheus's target.
        pages = [f"127.0.0.1:{harness.free_port()}" for _ in range(4)]
        servers = [fleet.add(env=env if not i else {},
                             flags=("--metrics-listen", page))
                   for i, page in enumerate(pages[:3])]
        fleet.policy = "prefer"
        other = fleet.add(flags=("--metrics-listen", pages[3]))
        clients = [connect(r.address) for r in (*servers, other)]
        (tmp_path / "prometheus").mkdir()
        # As many starts as fire it, in whatever time they take.
        rules = re.sub(r"(changes\(process_start_time_seconds{.*?})\[3s\]",
                       r"\1[1h]", OUR_RULES)
        assert rules != OUR_RULES
        alarm = Alarm(fleet.enter_context(
            prometheus(pages, tmp_path / "prometheus", rules)))

        def chat(number, name="alerts", words="hello"):
            try:
                clients[number].chat(name, words)
            except grpc.RpcError:
                pass

        for i, client in enumerate(clients):
            client.sessions.CreateSession(
                spb.CreateSessionRequest(id=f"alerts-{i}"))
            chat(i, f"alerts-{i}", "a few words " * 60)
        alarm.is_silent()

        # The store is away from one server, and from one that goes on.
        for i, names in (
                (0, ["XCacheSharedStoreAway", "XCacheErrorBudgetBurnsFast",
                     "XCacheErrorBudgetBurnsSlowly"]),
                (3, ["XCacheSharedStoreAway", "XCacheTurnsNotShared",
                     "XCachePagesNotShared"])):
            with fleet.proxies[fleet.replicas[i].name].injected(
                    Fault(refused=True)):
                alarm.fire(*names, meanwhile=lambda: chat(
                    i, f"alerts-{i}", "some more words " * 20))
                if i == 3:
                    # Another server goes on with the same conversation.
                    chat(1, "alerts-3", "another turn")
            if i == 3:
                alarm.fire("XCacheSessionsForked")
            alarm.is_silent("XCacheSessionsForked", meanwhile=lambda: chat(
                i, f"alerts-{i}"))
        # A store that wants to be left alone.
        with fleet.proxies[servers[1].name].injected(
                Fault(share=0.9, status=503, code="SlowDown")):
            alarm.fire("XCacheSharedStoreFails", meanwhile=lambda: chat(
                1, "alerts-1", "some more words " * 20))
        alarm.is_silent("XCacheSessionsForked",
                        meanwhile=lambda: chat(1, "alerts-1"))

        # What comes from the store is damaged.
        made = [f"damaged-{i}" for i in range(40)]

        def done(call):
            """Not while the store is still taken for away."""
            try:
                call()
            except grpc.RpcError as error:
                return error.code() == grpc.StatusCode.ALREADY_EXISTS
            return True

        for name in made:
            harness.wait_until(
                lambda: done(lambda: clients[1].sessions.CreateSession(
                    spb.CreateSessionRequest(id=name))), 60, name)
            harness.wait_until(lambda: done(lambda: clients[1].chat(
                name, f"{name}: a few words " * 60)), 60, name)
        with fleet.proxies[servers[2].name].injected(
                Fault(share=0.4, flip=True)):
            alarm.fire("XCachePagesDamaged",
                       meanwhile=lambda: made and chat(2, made.pop()))

        # A file of credentials that is none.
        servers[0].write_credentials("", "")
        alarm.fire("XCacheCredentialsBad")
        servers[0].write_credentials("replica", "replicas-secret")

        if env:
            clock.set(30)
            alarm.fire("XCacheClockJumped")
            clock.set(0)

        other.kill()
        alarm.fire("XCacheDown")
        for _ in range(3):
            other.start()
            alarm.wait_up(pages[3], 1)
            other.kill()
            alarm.wait_up(pages[3], 0)
        alarm.fire("XCacheRestarts")

        # One with another model of the same name, with a store that was backed
        # up three days ago, and whose pages are damaged. And then a conversation
        # of it is.
        other.model = make_model(models / "another.gguf", "context=4096",
                                 "seed=7")
        then = time.time() - 3 * 86400
        back_up_mark = other.folder / "store/last-backup"
        back_up_mark.touch()
        os.utime(back_up_mark, (then, then))
        (other.folder / "store/pages/CURRENT").write_bytes(b"rubbish")
        other.start()
        alarm.fire("XCacheVersionsDiffer", "XCacheBackupOld",
                   "XCachePagesSetAside")
        os.utime(other.model)
        alarm.fire("XCacheModelFileChanged")
        for key in store.objects(f"{fleet.prefix}sessions/"):
            store.client().put_object(Bucket=BUCKET, Key=key, Body=b"rubbish")
        alarm.fire("XCacheSessionDamaged",
                   meanwhile=lambda: chat(1, "alerts-1"))
        assert alarm.seen | set(NOT_HERE) | FULL_DISK | (
            set() if env else {"XCacheClockJumped"}) == set(ALERTS)
        assert not alarm.seen & set(NOT_HERE)


@pytest.mark.timeout(600)
def test_alerts_of_a_full_disk_fire(tiny_model, tmp_path):
    (tmp_path / "prometheus").mkdir()
    with small_disk(tmp_path / "disk", "24m") as disk, harness.Server(
            tiny_model, tmp_path, store=disk / "store") as server, prometheus(
                [server.metrics_address], tmp_path / "prometheus",
                OUR_RULES) as address:
        client = server.client()
        client.sessions.CreateSession(spb.CreateSessionRequest(id="full"))

        def chat():
            # Whole blocks: pages to be written.
            client.chat(messages=f"{time.monotonic()} and some words " * 60)
            with contextlib.suppress(grpc.RpcError):  # in use by the other one
                client.chat("full", "more", params=harness.params(max_tokens=2))

        alarm = Alarm(address)
        with no_byte_left(disk):
            alarm.fire(*FULL_DISK, meanwhile=chat)
        alarm.is_silent()


@pytest.mark.skipif(not PICTURE_SECONDS,
                    reason="draws README's picture of a fleet: "
                           "XCACHE_FLEET_PICTURE_SECONDS")
@pytest.mark.timeout(0)
def test_the_picture_in_readme(tiny_model, tmp_path, store, seed):
    """Of three servers that chat behind Envoy; every three minutes one is lost,
    with all that it had on its disk."""
    rng = random.Random(seed)
    with Fleet(tiny_model, tmp_path, store=store,
               flags=("--threads", 1)) as fleet:
        pages = []
        for _ in range(3):
            pages.append(f"127.0.0.1:{harness.free_port()}")
            fleet.add(flags=("--threads", 1, "--metrics-listen", pages[-1]))
        fleet.balancer.wait_healthy(3)
        (tmp_path / "prometheus").mkdir()
        address = fleet.enter_context(prometheus(
            pages, tmp_path / "prometheus",
            (PROMETHEUS / "rules.yaml").read_text(), interval="5s"))
        talkers = [Talker(Backend(connect(fleet.balancer.address), patience=300),
                          [Talk(f"talk-{i}-{k}", "You know the words.", i)
                           for k in range(4)],
                          long_prompt=300, think=3) for i in range(4)]
        for talker in talkers:
            talker.start()
        end = time.monotonic() + PICTURE_SECONDS
        while time.monotonic() + 180 < end:
            time.sleep(180)
            lost = rng.choice(fleet.replicas)
            lost.kill()
            lost.lose_disk()
            lost.start()
        time.sleep(max(0, end - time.monotonic()))
        subprocess.run(
            [harness.SOURCE / "deploy/preview_dashboards.py", "--prometheus",
             address, "--minutes", str(PICTURE_SECONDS / 60), "--out",
             harness.SOURCE / "deploy/boards.svg"], check=True)
        for talker in talkers:
            talker.finish()

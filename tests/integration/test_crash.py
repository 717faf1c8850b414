"""kill -9 at random moments of a busy server: no acknowledged turn is lost, no
session is a mixture, no page is corrupt."""

import random
import threading
import time

import grpc
import pytest
from xcache.v1 import common_pb2

import harness
from conversations import Conversation
from harness import params
from model_fixtures import calibrate

CLIENTS = 4
SESSIONS_EACH = 2
WORDS = ("apple river stone cloud lamp paper seven green never after window "
         "music train bread quiet north").split()


class Sessions:
    """What one client has going: a few conversations that grow, and those that
    have had their length and are kept until they are checked once more."""

    def __init__(self, name, rng, max_context, codecs):
        self.name = name
        self.rng = rng
        self.max_context = max_context
        self.codecs = codecs
        self.made = 0
        self.open = [self._new() for _ in range(SESSIONS_EACH)]
        self.closed = []

    def _new(self):
        self.made += 1
        return Conversation(
            f"{self.name}-{self.made}", "You know the words: " + " ".join(
                self.rng.choices(WORDS, k=self.rng.randrange(5, 90))),
            self.codecs[self.made % len(self.codecs)])

    def pick(self):
        """One to go on with; a new one takes the place of one that is long."""
        i = self.rng.randrange(len(self.open))
        if self.open[i].tokens > self.max_context:
            self.closed.append(self.open[i])
            self.open[i] = self._new()
        return self.open[i]


class Busy(threading.Thread):
    """A client that talks in its sessions until the server is gone."""

    def __init__(self, server, sessions, rng, max_tokens):
        super().__init__()
        self.client = server.client()
        self.sessions = sessions
        self.rng = rng
        self.max_tokens = max_tokens
        self.turns = 0
        self.problem = None

    def run(self):
        try:
            while True:
                conversation = self.sessions.pick()
                if not conversation.created:
                    conversation.create(self.client)
                    continue
                words = self.rng.choices(WORDS, k=self.rng.randrange(4, 60))
                answer = conversation.ask(
                    self.client, " ".join(words),
                    params(max_tokens=self.rng.randrange(1, self.max_tokens),
                           temperature=0.9, seed=self.rng.randrange(1 << 30)))
                assert answer.final.durability == common_pb2.DURABILITY_LOCAL, (
                    "acknowledged, but not durable")
                self.turns += 1
        except grpc.RpcError as error:
            # UNAVAILABLE: the kill. Anything else is a finding.
            if error.code() != grpc.StatusCode.UNAVAILABLE:
                self.problem = error
        except AssertionError as error:
            self.problem = error


def run_rounds(model, folder, rounds, seed, max_context, longest_run,
               max_tokens, codecs=("",)):
    rng = random.Random(seed)
    clients = [Sessions(f"client{i}", random.Random(rng.randrange(1 << 30)),
                        max_context, codecs) for i in range(CLIENTS)]
    turns = reused = killed_starting = missing = 0
    server = harness.Server(model, folder)
    try:
        for number in range(rounds):
            busy = [Busy(server, sessions, random.Random(
                rng.randrange(1 << 30)), max_tokens) for sessions in clients]
            for thread in busy:
                thread.start()
            time.sleep(rng.uniform(0.01, longest_run))
            server.kill()
            for thread in busy:
                thread.join()
                assert thread.problem is None, thread.problem
                turns += thread.turns
            server.close_channels()
            if rng.random() < 0.2:
                # Killed again while it starts.
                server = harness.Server(model, folder, wait=False)
                time.sleep(rng.uniform(0.0, 0.3))
                server.kill()
                killed_starting += 1
            server = harness.Server(model, folder)
            client = server.client()
            for sessions in clients:
                for i, c in enumerate(sessions.open + sessions.closed):
                    # One session of each client is checked to the bit, and
                    # those that it is done with.
                    if c.check_after_crash(client) and (
                            i == number % SESSIONS_EACH or i >= SESSIONS_EACH):
                        reused += c.check_answer(client)
                sessions.closed.clear()
            metrics = server.metrics()
            assert metrics.corrupt_pages() == 0, f"round {number}"
            assert metrics.sum("xcache_corrupt_sessions_total") == 0
            # Pages are written behind a turn: those on their way at the kill
            # are computed again, with the same bits.
            missing += metrics.sum("xcache_missing_pages_total")
        server.stop()
    finally:
        server.close_channels()
        server.kill()
    print(f"{rounds} kills, {killed_starting} more while starting, "
          f"{turns} turns acknowledged, {reused} tokens reused, "
          f"{missing:.0f} pages missing, "
          f"{sum(sessions.made for sessions in clients)} sessions")
    # The run was a busy one, and there was something to lose.
    assert turns >= rounds
    return reused


def test_kill_at_50_random_moments(tiny_model, tmp_path, seed):
    rounds = int(harness.campaign("CRASH_ROUNDS", 50))
    calibrate(tiny_model, tmp_path)
    run_rounds(tiny_model, tmp_path, rounds, seed, max_context=2500,
               longest_run=0.6, max_tokens=60, codecs=("", "xquant-tc"))


@pytest.mark.model
def test_kill_with_the_real_model(real_model, tmp_path, seed):
    assert run_rounds(real_model, tmp_path, 4, seed, max_context=1500,
                      longest_run=5, max_tokens=16) > 0

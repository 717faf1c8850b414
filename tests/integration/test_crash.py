"""kill -9 at random moments of a busy server: no acknowledged turn is lost, no
session is a mixture, no page is corrupt."""

import os
import random
import threading
import time

import grpc
import pytest

import harness
from conversations import Conversation
from harness import params

CLIENTS = 4
SESSIONS_EACH = 2
WORDS = ("apple river stone cloud lamp paper seven green never after window "
         "music train bread quiet north").split()


class Busy(threading.Thread):
    """A client that talks in its sessions until the server is gone."""

    def __init__(self, server, conversations, rng, max_tokens):
        super().__init__()
        self.client = server.client()
        self.conversations = conversations
        self.rng = rng
        self.max_tokens = max_tokens
        self.turns = 0
        self.problem = None

    def run(self):
        try:
            while True:
                conversation = self.rng.choice(self.conversations)
                if not conversation.created:
                    conversation.create(self.client)
                    continue
                words = self.rng.choices(WORDS, k=self.rng.randrange(4, 60))
                answer = conversation.ask(
                    self.client, " ".join(words),
                    params(max_tokens=self.rng.randrange(1, self.max_tokens),
                           temperature=0.9, seed=self.rng.randrange(1 << 30)))
                assert answer.final.durable, "acknowledged, but not durable"
                self.turns += 1
        except grpc.RpcError as error:
            # UNAVAILABLE: the kill. Anything else is a finding.
            if error.code() != grpc.StatusCode.UNAVAILABLE:
                self.problem = error
        except AssertionError as error:
            self.problem = error


def run_rounds(model, folder, rounds, seed, max_context, longest_run,
               max_tokens):
    rng = random.Random(seed)
    made = [0]

    def conversation():
        made[0] += 1
        return Conversation(
            f"s{made[0]}", "You know the words: " + " ".join(
                rng.choices(WORDS, k=rng.randrange(5, 90))))

    clients = [[conversation() for _ in range(SESSIONS_EACH)]
               for _ in range(CLIENTS)]
    turns = reused = killed_starting = 0
    server = harness.Server(model, folder)
    try:
        for number in range(rounds):
            busy = [Busy(server, conversations, random.Random(
                rng.randrange(1 << 30)), max_tokens)
                    for conversations in clients]
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
            for conversations in clients:
                for i, c in enumerate(conversations):
                    if not c.check_after_crash(client):
                        continue
                    # One session of each client is checked to the bit.
                    if i == number % SESSIONS_EACH:
                        reused += c.check_answer(client)
                    tokens = client.sessions.GetSession(
                        harness.sessions_request(c.name)).num_tokens
                    if tokens > max_context:
                        conversations[i] = conversation()
            metrics = server.metrics()
            assert metrics.corrupt_pages() == 0, f"round {number}"
            assert metrics.sum("xcache_corrupt_sessions_total") == 0
            assert metrics.sum("xcache_missing_pages_total") == 0
        server.stop()
    finally:
        server.close_channels()
        server.kill()
    print(f"{rounds} kills, {killed_starting} more while starting, "
          f"{turns} turns acknowledged, {reused} tokens reused, "
          f"{made[0]} sessions")
    # The run was a busy one, and there was something to lose.
    assert turns >= rounds
    return reused


def test_kill_at_50_random_moments(tiny_model, tmp_path, seed):
    rounds = int(os.environ.get("XCACHE_CRASH_ROUNDS") or 50)
    run_rounds(tiny_model, tmp_path, rounds, seed, max_context=2500,
               longest_run=0.6, max_tokens=60)


@pytest.mark.model
def test_kill_with_the_real_model(real_model, tmp_path, seed):
    assert run_rounds(real_model, tmp_path, 4, seed, max_context=1500,
                      longest_run=5, max_tokens=16) > 0

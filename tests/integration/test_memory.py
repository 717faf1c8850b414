"""Resident memory (rule R5): whatever sessions, codecs and prompts come and go,
the process stays within what it had when it was ready - weights and program -
and its cap with 15 %."""

import random
import threading
import time

import grpc
import pytest
from xcache.v1 import sessions_pb2 as spb

import harness
from conftest import make_model
from harness import params

pytestmark = pytest.mark.skipif(
    harness.sanitized(), reason="sanitizers have memory of their own")

MIB = 1 << 20
CAP = 96 * MIB
# What has no share in the cap: threads' stacks, gRPC's buffers, allocators.
PROGRAM = 48 * MIB
SECONDS = harness.campaign("MEMORY_SECONDS", 25)
THREADS = 6
CODECS = ["", "kv-fp16", "kivi:bits=4", "xquant:bits=4", "xquant:bits=3"]


def resident(server, field="VmRSS"):
    """Bytes, of /proc/PID/status."""
    with open(f"/proc/{server.process.pid}/status", encoding="ascii") as f:
        for line in f:
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    raise AssertionError(field)


@pytest.fixture(scope="module")
def wide_model(models):
    """Cheap to run and wide in K and V: a megabyte for each block."""
    return make_model(models / "wide.gguf", "layers=8", "d_model=256",
                      "n_heads=8", "n_kv_heads=8", "head_dim=64", "d_ff=256",
                      "context=4096")


def text(rng, words):
    return " ".join(rng.choice(["shelf", "book", "page", "cover", "spine"]) +
                    str(rng.randrange(1000)) for _ in range(words))


class Load:
    """Threads that create sessions, chat, fork and delete until told to stop."""

    def __init__(self, server, seed):
        self.server = server
        self.deadline = time.monotonic() + SECONDS
        self.turns = 0
        self.problems = []
        self.threads = [threading.Thread(target=self.run, args=(seed + i, i))
                        for i in range(THREADS)]
        for thread in self.threads:
            thread.start()

    def join(self):
        for thread in self.threads:
            thread.join()
        assert not self.problems, self.problems[0]

    def run(self, seed, number):
        rng = random.Random(seed)
        client = self.server.client()
        mine = []
        try:
            while time.monotonic() < self.deadline:
                self.step(rng, client, mine, number)
        except Exception as error:  # shown by join
            self.problems.append(error)

    def step(self, rng, client, mine, number):
        if len(mine) > 20:
            gone = mine.pop(rng.randrange(len(mine)))
            client.sessions.DeleteSession(spb.DeleteSessionRequest(id=gone))
        try:
            if not mine or rng.random() < 0.3:
                new = f"s{number}-{rng.randrange(1 << 40)}"
                client.sessions.CreateSession(spb.CreateSessionRequest(
                    id=new, codec=rng.choice(CODECS),
                    system_prompt=text(rng, 20)))
                mine.append(new)
            client.chat(rng.choice(mine), text(rng, rng.choice([5, 60, 150])),
                        params=params(max_tokens=8, ignore_eos=True))
            self.turns += 1
        except grpc.RpcError as error:
            # Full contexts and full caps are said, and cost nothing; and a slow
            # machine is slow.
            assert error.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED,
                                    grpc.StatusCode.INVALID_ARGUMENT,
                                    grpc.StatusCode.DEADLINE_EXCEEDED,
                                    grpc.StatusCode.ABORTED), error


def test_resident_memory_stays_within_the_cap(wide_model, tmp_path, seed):
    with harness.Server(wide_model, tmp_path, "--memory-bytes", CAP) as server:
        ready = resident(server)
        load = Load(server, seed)
        most = 0
        used = 0
        while time.monotonic() < load.deadline:
            time.sleep(0.05)
            most = max(most, resident(server))
        load.join()
        used = server.metrics().sum("xcache_memory_peak_bytes")
        limit = ready + int(1.15 * CAP) + PROGRAM
        print(f"turns {load.turns}, ready {ready / MIB:.0f} MiB, most "
              f"{most / MIB:.0f}, limit {limit / MIB:.0f}, promised at most "
              f"{used / MIB:.0f}")
        # It was full, or it says nothing.
        assert used > 0.8 * CAP
        assert load.turns > 0
        assert most <= limit


def test_any_number_of_codecs_takes_the_memory_of_a_few(wide_model, tmp_path):
    with harness.Server(wide_model, tmp_path, "--memory-bytes", CAP,
                        "--max-codecs", 4) as server:
        client = server.client()
        ready = resident(server)
        number = 0
        for name in ("xquant", "xquant-cl"):
            for bits in (2, 3, 4, 8):
                for group in (16, 32, 64):
                    for clip in ("mse", "minmax"):
                        number += 1
                        client.sessions.CreateSession(spb.CreateSessionRequest(
                            id=f"codec{number}",
                            codec=f"{name}:bits={bits},group={group},"
                                  f"clip={clip}"))
        metrics = server.metrics()
        assert metrics.sum("xcache_memory_bytes", account="codecs") > 0
        assert resident(server) <= ready + int(1.15 * CAP) + PROGRAM
        # A session of a codec that was closed meanwhile goes on.
        answer = client.chat("codec1", "hello", params=params(max_tokens=4))
        assert answer.final.prompt_tokens > 0
        assert server.log().count("codec closed") >= number - 5

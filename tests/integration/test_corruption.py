"""Files of the store are damaged between two runs. Whatever was hit, the server
never gives a wrong answer and never fails a request because of a page: what is
damaged is counted, dropped and computed again, or it is DATA_LOSS for that one
session, or the store says in one line that it wants --repair.

XCACHE_DAMAGE_ROUNDS (4) is how many stores get damage of any kind anywhere; a
campaign takes 1500. XCACHE_FLIP_ROUNDS (1), of 400 bits each, is for pages that
are damaged while they are served; a campaign takes 50."""

import contextlib
import os
import random
import shutil

import grpc
import pytest
from xcache.v1 import common_pb2
from xcache.v1 import sessions_pb2 as spb

import harness
from conversations import Conversation
from harness import params
from model_fixtures import calibrate

Code = grpc.StatusCode
SESSIONS = 3
DAMAGE_ROUNDS = int(harness.campaign("DAMAGE_ROUNDS", 4))
FLIP_ROUNDS = int(harness.campaign("FLIP_ROUNDS", 1))


@pytest.fixture(scope="module")
def pristine(medium_model, tmp_path_factory):
    """A store with a few conversations, closed in good order."""
    folder = tmp_path_factory.mktemp("pristine")
    rng = random.Random(3)
    with harness.Server(medium_model, folder) as server:
        client = server.client()
        conversations = []
        for i in range(SESSIONS):
            c = Conversation(f"c{i}", f"Conversation {i}. " + "context " * 60)
            c.create(client)
            for turn in range(2):
                words = [str(rng.randrange(1000)) for _ in range(60)]
                answer = c.ask(client, " ".join(words), params(max_tokens=8))
                assert (answer.final.durability ==
                        common_pb2.DURABILITY_LOCAL)
            conversations.append(c)
        for c in conversations:
            client.sessions.FlushSession(spb.FlushSessionRequest(id=c.name))
        server.stop()
    with harness.Server(medium_model, folder) as server:
        client = server.client()
        for c in conversations:
            # Otherwise nothing below would show that a page was dropped.
            assert c.check_answer(client) >= 128
        server.stop()
    return folder, conversations


class Outcome:

    def __init__(self):
        self.damage_seen = 0   # counted by the server, or refused in words
        self.repaired = 0
        self.lost_sessions = 0


def copy_of(conversation):
    c = Conversation(conversation.name, "")
    c.messages = list(conversation.messages)
    c.turn = conversation.turn
    c.created = True
    return c


def check_session(client, known):
    """The session is whole, at its turn or an earlier one, and right; or its
    loss is said. Returns "ok", "lost" or "earlier"."""
    try:
        session = client.sessions.GetSession(spb.GetSessionRequest(
            id=known.name, with_messages=True))
        have = [(m.role, m.content) for m in session.messages]
        assert have == known.messages[:len(have)], "a mixture"
        c = copy_of(known)
        c.check_answer(client)
    except grpc.RpcError as error:
        assert error.code() in (Code.DATA_LOSS, Code.NOT_FOUND), error
        return "lost"
    return "ok" if session.turn == known.turn else "earlier"


def run_damaged(model, folder, conversations, outcome):
    """Starts on the damaged store and holds it to the rule."""
    try:
        server = harness.Server(model, folder)
    except harness.StartError as refused:
        last = refused.log.strip().splitlines()[-1]
        assert refused.code == 1, refused.log
        assert "--repair" in last, refused.log
        outcome.repaired += 1
        server = harness.Server(model, folder, "--repair")
        refused_before = True
    else:
        refused_before = False
    with server:
        client = server.client()
        states = [check_session(client, c) for c in conversations]
        outcome.lost_sessions += states.count("lost")
        # A page's fault costs time only.
        answer = client.chat(messages="a new question " * 30,
                             params=params(max_tokens=4))
        assert answer.final.generated_tokens > 0
        client.sessions.CreateSession(spb.CreateSessionRequest(id="new"))
        client.chat("new", "hello")
        metrics = server.metrics()
        counted = (metrics.corrupt_pages() +
                   metrics.sum("xcache_missing_pages_total") +
                   metrics.sum("xcache_corrupt_sessions_total"))
        if counted or refused_before:
            outcome.damage_seen += 1
        if set(states) != {"ok"}:
            assert counted or refused_before, (
                f"sessions are {states} and nothing was counted")
        failures = {pair: n for pair, n in metrics.requests().items()
                    if n and pair[1] not in ("OK", "NOT_FOUND", "DATA_LOSS")}
        assert not failures
        server.stop()
    return states


def files_of(store, pattern):
    return sorted(p for p in store.rglob(pattern)
                  if p.is_file() and p.stat().st_size > 0)


def damaged_copy(pristine, tmp_path, name):
    folder = tmp_path / name
    shutil.copytree(pristine, folder)
    return folder, folder / "store"


def flip(path, rng, count=1):
    data = bytearray(path.read_bytes())
    for _ in range(count):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def test_flipped_bytes_in_pages(medium_model, pristine, tmp_path, seed):
    """Pages are in RocksDB's blob files."""
    folder, conversations = pristine
    blobs = files_of(folder / "store", "*.blob")
    assert blobs, "no blob files: where are the pages?"
    rng = random.Random(seed)
    outcome = Outcome()
    for i in range(6):
        copy, store = damaged_copy(folder, tmp_path, f"flip{i}")
        for blob in files_of(store, "*.blob"):
            flip(blob, rng, count=3)
        states = run_damaged(medium_model, copy, conversations, outcome)
        if not outcome.repaired:
            # Manifests are elsewhere: no session is lost to a damaged page.
            assert states == ["ok"] * SESSIONS
        shutil.rmtree(copy)
    assert outcome.damage_seen >= 5, "flips in pages went unnoticed"


def test_flipped_bytes_in_pages_of_any_size(medium_model, tmp_path, seed):
    """Of xquant-tc, where one bit decides how the rest is read."""
    folder = tmp_path / "tc"
    folder.mkdir()
    calibrate(medium_model, folder)
    c = Conversation("c", "context " * 60, "xquant-tc")
    with harness.Server(medium_model, folder) as server:
        client = server.client()
        c.create(client)
        for turn in range(2):
            c.ask(client, f"{turn} and on " * 30, params(max_tokens=8))
        client.sessions.FlushSession(spb.FlushSessionRequest(id=c.name))
        server.stop()
    # The log becomes blob files when it is read.
    with harness.Server(medium_model, folder) as server:
        assert c.check_answer(server.client()) >= 128
        server.stop()
    rng = random.Random(seed + 3)
    outcome = Outcome()
    for i in range(3):
        copy, store = damaged_copy(folder, tmp_path, f"flip{i}")
        blobs = files_of(store, "*.blob")
        assert blobs, "no blob files: where are the pages?"
        for blob in blobs:
            flip(blob, rng, count=9)
        assert run_damaged(medium_model, copy, [c], outcome) == ["ok"]
        shutil.rmtree(copy)
    assert outcome.damage_seen == 3, "flips in pages went unnoticed"


def test_truncated_pages(medium_model, pristine, tmp_path, seed):
    folder, conversations = pristine
    rng = random.Random(seed + 1)
    outcome = Outcome()
    for i in range(5):
        copy, store = damaged_copy(folder, tmp_path, f"cut{i}")
        for blob in files_of(store, "*.blob"):
            size = blob.stat().st_size
            with open(blob, "r+b") as f:
                f.truncate([0, 1, size // 2, size - 1,
                            rng.randrange(size)][i])
        run_damaged(medium_model, copy, conversations, outcome)
        shutil.rmtree(copy)
    assert outcome.damage_seen >= 4, "truncated pages went unnoticed"


def test_missing_pages(medium_model, pristine, tmp_path):
    folder, conversations = pristine
    outcome = Outcome()
    copy, store = damaged_copy(folder, tmp_path, "gone")
    for blob in files_of(store, "*.blob"):
        blob.unlink()
    run_damaged(medium_model, copy, conversations, outcome)
    assert outcome.damage_seen == 1


@pytest.mark.parametrize("pattern", [
    "*.sst", "*.log", "MANIFEST-*", "CURRENT", "OPTIONS-*", "IDENTITY"])
def test_damaged_files_of_the_database(medium_model, pristine, tmp_path, seed,
                                       pattern):
    folder, conversations = pristine
    rng = random.Random(f"{seed}{pattern}")
    if not files_of(folder / "store", pattern):
        pytest.skip(f"the store has no {pattern} with anything in it")
    outcome = Outcome()
    for i in range(4):
        copy, store = damaged_copy(folder, tmp_path, f"{i}")
        for path in files_of(store, pattern):
            size = path.stat().st_size
            if i % 2 == 0:
                flip(path, rng, count=3)
            else:
                with open(path, "r+b") as f:
                    f.truncate(rng.randrange(size))
        run_damaged(medium_model, copy, conversations, outcome)
        shutil.rmtree(copy)
    print(f"{pattern}: seen {outcome.damage_seen} of 4, repaired "
          f"{outcome.repaired}, sessions lost {outcome.lost_sessions}")
    if pattern in ("MANIFEST-*", "CURRENT"):
        # No byte of those of sessions can go unnoticed, and the records are
        # elsewhere.
        assert outcome.damage_seen == 4
        assert outcome.lost_sessions == 0


def test_damaged_profile_is_made_anew(medium_model, pristine, tmp_path, seed):
    folder, conversations = pristine
    rng = random.Random(seed + 2)
    profiles = files_of(folder / "store" / "profiles", "*")
    assert profiles, "no profile: nothing is tested"
    for i in range(3):
        copy, store = damaged_copy(folder, tmp_path, f"profile{i}")
        before = {p.name: p.read_bytes() for p in profiles}
        for path in files_of(store / "profiles", "*"):
            if i == 0:
                path.write_bytes(path.read_bytes()[:100])
            else:
                flip(path, rng, count=2)
        with harness.Server(medium_model, copy) as server:
            client = server.client()
            for c in conversations:
                assert copy_of(c).check_answer(client) >= 128
            server.stop()
        # It is a function of the model: the same bytes again.
        after = {p.name: p.read_bytes()
                 for p in files_of(store / "profiles", "*")}
        assert after == before
        shutil.rmtree(copy)


def damage(path, rng, others):
    """Of a kind that a disk, a file system or a person might do."""
    size = path.stat().st_size
    start = rng.randrange(size)
    kind = rng.choice(["flip", "cut", "zero", "repeat", "append", "swap",
                       "remove"])
    if kind == "flip":
        flip(path, rng, count=rng.randrange(1, 9))
    elif kind == "cut":
        os.truncate(path, start)
    elif kind == "remove":
        path.unlink()
    elif kind == "swap":
        path.write_bytes(rng.choice(others).read_bytes())
    else:
        data = path.read_bytes()
        end = min(size, start + rng.randrange(1, 4096))
        new = {"zero": data[:start] + bytes(end - start) + data[end:],
               "repeat": data[:end] + data[start:],
               "append": data + rng.randbytes(end - start)}[kind]
        path.write_bytes(new)
    return kind


def test_any_damage_anywhere(medium_model, pristine, tmp_path, seed):
    folder, conversations = pristine
    rng = random.Random(f"{seed}anywhere")
    outcome = Outcome()
    for i in range(DAMAGE_ROUNDS):
        copy, store = damaged_copy(folder, tmp_path, f"any{i}")
        done = []
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            files = files_of(store, "*")
            path = rng.choice(files)
            done.append((path.relative_to(store), damage(path, rng, files)))
        try:
            run_damaged(medium_model, copy, conversations, outcome)
        except BaseException:
            print(f"round {i}: {done}")
            raise
        shutil.rmtree(copy)
    print(f"{DAMAGE_ROUNDS} damaged stores: counted or refused "
          f"{outcome.damage_seen}, repaired {outcome.repaired}, sessions lost "
          f"{outcome.lost_sessions} of {DAMAGE_ROUNDS * SESSIONS}")


def flip_served(folder, rng):
    """One bit in place, of any file of a server that runs: each of its bytes is
    as likely. A file may be gone meanwhile."""
    sizes = {}
    for path in sorted(folder.iterdir()):
        with contextlib.suppress(FileNotFoundError):
            sizes[path] = path.stat().st_size
    [path] = rng.choices(list(sizes), list(sizes.values()))
    with contextlib.suppress(FileNotFoundError), open(path, "r+b") as f:
        f.seek(rng.randrange(sizes[path]))
        byte = f.read(1)
        if byte:
            f.seek(-1, os.SEEK_CUR)
            f.write(bytes([byte[0] ^ 1 << rng.randrange(8)]))


def test_pages_flip_while_they_are_served(medium_model, pristine, tmp_path,
                                          seed):
    """Little memory, so that pages are read from disk over and over. Nothing is
    lost, nothing is refused, no bit is another."""
    folder, conversations = pristine
    rng = random.Random(f"{seed}served")
    dropped = 0
    for i in range(FLIP_ROUNDS):
        copy, store = damaged_copy(folder, tmp_path, f"live{i}")
        talks = [copy_of(c) for c in conversations]
        with harness.Server(medium_model, copy, "--memory-bytes",
                            "32MiB") as server:
            client = server.client()
            for _ in range(20):
                for _ in range(20):
                    flip_served(store / "pages", rng)
                talk = rng.choice(talks)
                talk.check_answer(client)
                talk.ask(client, str(rng.random()) * 8, params(max_tokens=4))
            metrics = server.metrics()
            dropped += (metrics.corrupt_pages() +
                        metrics.sum("xcache_missing_pages_total"))
            assert {code for (_, code), n in metrics.requests().items()
                    if n} == {"OK"}
            server.kill() if i % 2 else server.stop()
        with harness.Server(medium_model, copy) as server:
            client = server.client()
            for talk in talks:
                assert talk.check_after_crash(client)
                talk.check_answer(client)
            server.stop()
        shutil.rmtree(copy)
    print(f"{400 * FLIP_ROUNDS} bits in {FLIP_ROUNDS} stores; pages dropped: "
          f"{dropped:.0f}")
    assert dropped > 0, "flips in pages went unnoticed"

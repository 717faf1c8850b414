"""`xcache store`: stats, verify, backup and restore beside a real server."""

import json
import os
import pathlib
import stat
import subprocess
import tempfile
import threading

import grpc
import pytest
from xcache.v1 import sessions_pb2 as spb

import harness
from conversations import Conversation
from harness import params

SYSTEM = "You keep the log of a small ship. " * 12
ANSWER = params(max_tokens=24, ignore_eos=True, logprobs=1)


def store(*words, folder, code=0, env=None):
    done = subprocess.run(
        [harness.COMMAND, "store", *map(str, words)],
        env={**os.environ, "XCACHE_STORE_DIR": str(folder), **(env or {})},
        capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def talk(server, names, turns):
    client = server.client()
    made = {}
    for name in names:
        made[name] = Conversation(name, SYSTEM)
        made[name].create(client)
        for turn in range(turns):
            made[name].ask(client, f"What of day {turn}?", ANSWER)
    return made


def next_answer(server, name):
    """The bits of what would come next; the session stays as it is."""
    client = server.client()
    fork = client.sessions.ForkSession(spb.ForkSessionRequest(id=name)).id
    answer = client.chat(fork, "And now?", params=ANSWER)
    client.sessions.DeleteSession(spb.DeleteSessionRequest(id=fork))
    return answer


def test_a_backup_under_load_has_what_was_acknowledged(medium_model, tmp_path):
    with harness.Server(medium_model, tmp_path) as server:
        conversations = talk(server, ["a", "b", "c"], turns=2)
        stop = threading.Event()
        acknowledged = {name: 2 for name in conversations}
        failures = []

        def go_on(name):
            client = server.client()
            try:
                while not stop.is_set():
                    conversations[name].ask(client, "Go on.", params(
                        max_tokens=4, ignore_eos=True))
                    acknowledged[name] = conversations[name].turn
            except Exception as error:  # told by the test, not its thread
                failures.append(error)

        threads = [threading.Thread(target=go_on, args=(name,))
                   for name in conversations]
        for thread in threads:
            thread.start()
        backups = []
        for number in range(3):
            before = dict(acknowledged)
            done = json.loads(store(
                "backup", tmp_path / f"backup{number}", "--json",
                folder=tmp_path / "store").stdout)
            assert done["sessions"] >= 3 and done["missing_sessions"] == 0
            backups.append(before)
        stop.set()
        for thread in threads:
            thread.join()
        assert not failures, failures
        assert min(acknowledged.values()) > 3
        wanted = {name: next_answer(server, name).bits for name in "abc"}
        last = json.loads(store("backup", tmp_path / "last", "--json",
                                folder=tmp_path / "store").stdout)
        assert last["pages"] > 0
        log = server.log()
        assert "store backed up sessions=3 " in log
        server.kill()

    for number, before in enumerate(backups):
        folder = tmp_path / f"restored{number}"
        folder.mkdir()
        store("restore", tmp_path / f"backup{number}", folder=folder / "store")
        with harness.Server(medium_model, folder) as server:
            client = server.client()
            for name, conversation in conversations.items():
                session = client.sessions.GetSession(spb.GetSessionRequest(
                    id=name, with_messages=True))
                assert before[name] <= session.turn <= conversation.turn
                have = [(m.role, m.content) for m in session.messages]
                assert have == conversation.messages[:len(have)]
            server.stop()
    folder = tmp_path / "again"
    folder.mkdir()
    store("restore", tmp_path / "last", folder=folder / "store")
    with harness.Server(medium_model, folder) as server:
        answers = {name: next_answer(server, name) for name in "abc"}
        assert {n: a.bits for n, a in answers.items()} == wanted
        # The others begin alike, and find it in memory by then.
        assert answers["a"].final.reused.disk > 0
        server.stop()


def test_without_pages_the_same_answers_come_slower(medium_model, tmp_path):
    with harness.Server(medium_model, tmp_path) as server:
        talk(server, ["a"], turns=2)
        wanted = next_answer(server, "a").bits
        store("backup", tmp_path / "b", "--sessions-only",
              folder=tmp_path / "store")
        server.stop()
    assert not (tmp_path / "b/pages").exists()
    folder = tmp_path / "again"
    folder.mkdir()
    store("restore", tmp_path / "b", folder=folder / "store")
    with harness.Server(medium_model, folder) as server:
        answer = next_answer(server, "a")
        assert answer.bits == wanted and answer.final.reused.disk == 0


def test_stats_and_verify(medium_model, tmp_path):
    with harness.Server(medium_model, tmp_path) as server:
        talk(server, ["a", "b"], turns=2)
        for name in "ab":
            server.client().sessions.FlushSession(
                spb.FlushSessionRequest(id=name))
        stats = json.loads(store("stats", "--json",
                                 folder=tmp_path / "store").stdout)
        assert stats["sessions"]["count"] == 2
        assert stats["sessions"]["in_memory_only"] == 0
        tiers = {tier["tier"]: tier for tier in stats["tiers"]}
        assert tiers["disk"]["pages"] > 0 and tiers["disk"]["bytes"] > 0
        assert 0 < stats["disk"]["used_bytes"] <= stats["disk"]["cap_bytes"]
        shown = store("stats", folder=tmp_path / "store").stdout
        assert "sessions" in shown and "disk" in shown
        look = json.loads(store("verify", "--json", "--mb-per-s", "50",
                                folder=tmp_path / "store").stdout)
        assert look["sessions"] == 2
        assert look["pages"] == tiers["disk"]["pages"]
        assert look["bytes"] >= tiers["disk"]["bytes"]
        assert look["damaged_sessions"] == look["damaged_pages"] == 0
        assert look["damaged_files"] == [] and look["unreadable"] == 0
        assert "store verified sessions=2 " in server.log()
        server.stop()
    # A start makes tables and blob files of what was in the logs.
    with harness.Server(medium_model, tmp_path) as server:
        server.stop()
    # Damage on disk is found while the next server serves.
    blob = max((tmp_path / "store/pages").glob("*.blob"),
               key=lambda p: p.stat().st_size)
    data = bytearray(blob.read_bytes())
    data[200] ^= 1  # in the first page, behind what RocksDB puts before it
    blob.write_bytes(data)
    with harness.Server(medium_model, tmp_path) as server:
        look = json.loads(store("verify", "--json",
                                folder=tmp_path / "store").stdout)
        assert look["damaged_pages"] == 1 and look["damaged_sessions"] == 0
        assert server.metrics().corrupt_pages() >= 1
        table = next((tmp_path / "store/sessions").glob("*.sst"))
        data = bytearray(table.read_bytes())
        data[-30] ^= 1
        table.write_bytes(data)
        look = json.loads(store("verify", "--json", folder=tmp_path / "store",
                                code=8).stdout.splitlines()[0])
        assert look["damaged_files"] == [f"sessions/{table.name}"]


def test_the_socket_is_the_users_alone(tiny_model, tmp_path):
    with harness.Server(tiny_model, tmp_path) as server:
        socket = tmp_path / "store/operator.sock"
        mode = socket.stat().st_mode
        assert stat.S_ISSOCK(mode) and stat.S_IMODE(mode) == 0o600
        # It is on no other address.
        with harness.fails_with(grpc.StatusCode.UNIMPLEMENTED):
            server.channel().unary_unary(
                "/xcache.v1.Operator/GetStoreStats")(b"")
        server.kill()
    # What a killed server left behind is in nobody's way, and answers nobody.
    assert socket.exists()
    assert "xcache-server" in store("stats", folder=tmp_path / "store",
                                    code=3).stderr
    with harness.Server(tiny_model, tmp_path) as server:
        store("stats", folder=tmp_path / "store")
        server.stop()
    assert not socket.exists()


def test_a_socket_of_its_own(tiny_model, tmp_path):
    odd = tmp_path / "a b%41"
    odd.mkdir()
    with harness.Server(tiny_model, tmp_path, "--operator-socket",
                        odd / "s#1?"):
        store("stats", "--socket", odd / "s#1?", folder="")
        assert not (tmp_path / "store/operator.sock").exists()
    with harness.Server(tiny_model, tmp_path, "--operator-socket", "none"):
        assert "operator socket" in store("stats", folder=tmp_path / "store",
                                          code=3).stderr
    with harness.Server(tiny_model, tmp_path, "--operator-socket",
                        odd / "s", store=None):
        stats = json.loads(store("stats", "--json", "--socket", odd / "s",
                                 folder="").stdout)
        assert stats["disk"] is None
        store("backup", tmp_path / "none", "--socket", odd / "s", folder="",
              code=1)
        assert not list(tmp_path.glob("none*"))


def test_a_store_may_lie_deeper_than_a_socket(tiny_model, tmp_path):
    deep = tmp_path / ("s" * 120)
    with harness.Server(tiny_model, tmp_path, store=deep.name) as server:
        server.kill()
    with harness.Server(tiny_model, tmp_path, store=deep.name) as server:
        server.client().chat(messages="hi")
        assert (deep / "operator.sock").is_socket()
        store("stats", folder=deep)
        server.stop()
    assert not (deep / "operator.sock").exists()
    assert "No such file" in store("stats", folder=tmp_path / ("n" * 120),
                                   code=3).stderr


def test_a_server_without_a_socket_serves(tiny_model, tmp_path):
    with harness.Server(tiny_model, tmp_path, "--operator-socket",
                        tmp_path / "none/socket") as server:
        server.client().chat(messages="hi")
        assert "no operator socket" in server.log()


def test_restore_overwrites_nothing_and_no_running_store(tiny_model, tmp_path):
    with harness.Server(tiny_model, tmp_path) as server:
        server.client().sessions.CreateSession(
            spb.CreateSessionRequest(id="kept"))
        store("backup", tmp_path / "b", folder=tmp_path / "store")
        store("backup", tmp_path / "b", folder=tmp_path / "store", code=7)
        before = sorted(os.listdir(tmp_path))
        store("restore", tmp_path / "b", folder=tmp_path / "store", code=7)
        done = store("restore", "--replace", tmp_path / "b",
                     folder=tmp_path / "store", code=1)
        assert "in use" in done.stderr
        assert sorted(os.listdir(tmp_path)) == before
        server.client().sessions.CreateSession(
            spb.CreateSessionRequest(id="later"))
        server.stop()
    done = json.loads(store("restore", "--replace", "--json", tmp_path / "b",
                            folder=tmp_path / "store").stdout)
    assert pathlib.Path(done["kept_as"], "sessions/CURRENT").exists()
    with harness.Server(tiny_model, tmp_path) as server:
        client = server.client()
        client.sessions.GetSession(spb.GetSessionRequest(id="kept"))
        with harness.fails_with(grpc.StatusCode.NOT_FOUND):
            client.sessions.GetSession(spb.GetSessionRequest(id="later"))
        server.stop()


def test_a_damaged_backup_is_not_restored(tiny_model, tmp_path):
    with harness.Server(tiny_model, tmp_path) as server:
        server.client().sessions.CreateSession(spb.CreateSessionRequest(id="x"))
        store("backup", tmp_path / "b", folder=tmp_path / "store")
    store("restore", "--check-only", tmp_path / "b", folder="")
    assert subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"],
                          cwd=tmp_path / "b").returncode == 0
    victim = next((tmp_path / "b/sessions").glob("MANIFEST-*"))
    victim.write_bytes(victim.read_bytes() + b"x")
    for words in (["--check-only"], []):
        done = store("restore", *words, tmp_path / "b",
                     folder=tmp_path / "new", code=8)
        assert victim.name in done.stderr
    assert not (tmp_path / "new").exists()


def test_a_backup_that_is_cut_off_leaves_nothing(medium_model, tmp_path):
    with harness.Server(medium_model, tmp_path) as server:
        talk(server, ["a"], turns=2)
        server.client().sessions.FlushSession(spb.FlushSessionRequest(id="a"))
        # So slow that it does not come to its end by itself.
        process = subprocess.Popen(
            [harness.COMMAND, "store", "backup", "--mb-per-s", "0.001",
             tmp_path / "b"], stderr=subprocess.PIPE,
            env={**os.environ, "XCACHE_STORE_DIR": str(tmp_path / "store")})
        harness.wait_until((tmp_path / "b.partial").exists, what="a beginning")
        store("backup", tmp_path / "other", folder=tmp_path / "store", code=6)
        # The server ends all the same, and in time.
        server.stop()
        assert process.wait(timeout=30) != 0
        process.stderr.close()
    assert not list(tmp_path.glob("b*")) and not (tmp_path / "other").exists()


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to be others")
def test_another_user_is_not_let_in(tiny_model, tmp_path):
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        socket = f"{folder}/socket"
        with harness.Server(tiny_model, tmp_path, "--operator-socket", socket):
            knock = ["/usr/bin/python3", "-c",
                     "import socket as s; "
                     f"s.socket(s.AF_UNIX).connect({socket!r})"]
            assert subprocess.run(knock).returncode == 0
            done = subprocess.run(knock, capture_output=True, text=True,
                                  preexec_fn=lambda: os.setuid(65534), cwd="/")
            assert "PermissionError" in done.stderr, done.stderr

"""What a new user gets wrong: each gets one clear line and a non-zero exit, or
the server serves on where it can."""

import contextlib
import os
import shutil
import socket
import struct
import subprocess

import pytest
from xcache.v1 import common_pb2
from xcache.v1 import sessions_pb2 as spb

import harness
from disks import no_byte_left, small_disk
from gguf_edit import Gguf
from harness import params


def run(*flags, timeout=120, cwd=None, under=()):
    """Runs the server where it must not start; returns its exit code and last
    line, and checks that what it says is for people."""
    done = subprocess.run(
        [*under, harness.SERVER, *map(str, flags)], capture_output=True,
        text=True, timeout=timeout, cwd=cwd, errors="replace")
    lines = done.stderr.strip().splitlines()
    assert done.returncode > 0, (
        f"exit code {done.returncode} (negative: a signal)\n{done.stderr}")
    assert lines, "it failed without a word"
    last = lines[-1]
    assert last.startswith("xcache-server: "), done.stderr
    assert len(last) < 600
    for word in ("terminate called", "Assertion", "std::", "abort"):
        assert word not in done.stderr, done.stderr
    errors = [line for line in lines if line.startswith("xcache-server: ")]
    assert len(errors) == 1, done.stderr
    return done.returncode, last


@pytest.fixture
def flags(tmp_path):
    return ["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0",
            "--store-dir", tmp_path / "store"]


def refuses(flags, model, *texts, under=()):
    code, line = run("--model", model, *flags, under=under)
    assert code == 1, line
    for text in texts:
        assert str(text) in line, line
    return line


# Models.


def test_no_model_flag():
    code, line = run()
    assert code == 2 and "--model" in line


def test_no_such_model(flags, tmp_path):
    refuses(flags, tmp_path / "none.gguf", tmp_path / "none.gguf")


def test_a_folder_and_an_empty_file(flags, tmp_path):
    refuses(flags, tmp_path, tmp_path)
    (tmp_path / "empty.gguf").touch()
    refuses(flags, tmp_path / "empty.gguf", "empty.gguf")


def test_the_wrong_file(flags, tmp_path):
    path = tmp_path / "readme.gguf"
    path.write_text("# This is no model\n" * 50)
    refuses(flags, path, path, "GGUF")
    path.write_bytes(os.urandom(100000))
    refuses(flags, path, path, "GGUF")
    path.write_bytes(b"GGUF" + os.urandom(100000))
    refuses(flags, path, path)


def test_truncated_at_many_places(flags, tiny_model, tmp_path):
    data = tiny_model.read_bytes()
    path = tmp_path / "cut.gguf"
    for size in [3, 4, 8, 20, 24, 100, len(data) // 10, len(data) // 2,
                 len(data) - 1]:
        path.write_bytes(data[:size])
        refuses(flags, path, path)


def test_unsupported_version(flags, tiny_model, tmp_path):
    path = tmp_path / "version.gguf"
    data = bytearray(tiny_model.read_bytes())
    for version in (1, 4, 1 << 24):
        struct.pack_into("<I", data, 4, version)
        path.write_bytes(data)
        refuses(flags, path, "version", version)


def test_unsupported_tensor_type(flags, tiny_model, tmp_path):
    path = tmp_path / "types.gguf"
    for number in (16, 39, 4, 1000):  # IQ2_XXS, MXFP4, removed Q4_2, nothing
        gguf = Gguf(tiny_model)
        gguf.set_tensor_type("blk.0.attn_q.weight", number)
        path.write_bytes(gguf.data)
        refuses(flags, path, "blk.0.attn_q.weight", number)


def test_unsupported_architecture(flags, tiny_model, tmp_path):
    path = tmp_path / "arch.gguf"
    gguf = Gguf(tiny_model)
    gguf.set_string("general.architecture", b"mamba")
    path.write_bytes(gguf.data)
    refuses(flags, path, "mamba", "llama")


def test_unknown_tokenizer(flags, tiny_model, tmp_path):
    path = tmp_path / "tokenizer.gguf"
    gguf = Gguf(tiny_model)
    have = gguf.string("tokenizer.ggml.model")
    gguf.set_string("tokenizer.ggml.model", b"x" * len(have))
    path.write_bytes(gguf.data)
    refuses(flags, path, "x" * len(have))


def test_a_missing_tensor(flags, tiny_model, tmp_path):
    path = tmp_path / "missing.gguf"
    data = tiny_model.read_bytes()
    name = b"blk.1.ffn_down.weight"
    assert data.count(name) == 1
    path.write_bytes(data.replace(name, b"blk.1.ffn_nwod.weight"))
    refuses(flags, path, name.decode())


def test_impossible_sizes(flags, tiny_model, tmp_path):
    path = tmp_path / "sizes.gguf"
    for key in ("llama.block_count", "llama.embedding_length",
                "llama.attention.head_count", "llama.feed_forward_length"):
        for number in (0, 1 << 30):
            gguf = Gguf(tiny_model)
            gguf.set_u32(key, number)
            path.write_bytes(gguf.data)
            refuses(flags, path)


def test_a_file_that_may_not_be_read(flags, tiny_model, tmp_path):
    path = shutil.copy(tiny_model, tmp_path / "secret.gguf")
    os.chmod(path, 0)
    # Root may read every file, unless that right is taken from it.
    under = ()
    if os.geteuid() == 0:
        under = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
    refuses(flags, path, path, under=under)


# Flags.


@pytest.mark.parametrize("bad, word", [
    (["--frobnicate"], "--frobnicate"),
    (["--codec"], "--codec"),
    (["--memory-bytes", "much"], "--memory-bytes"),
    (["--disk-bytes", "-1"], "--disk-bytes"),
    (["--listen", "nowhere"], "--listen"),
    (["--listen", "127.0.0.1:99999"], "--listen"),
    (["--listen", "0.0.0.0:0"], "--insecure"),
    (["--tls-cert", "cert.pem"], "--tls-key"),
    (["--threads", "many"], "--threads"),
    (["--device", "abacus"], "--device"),
    (["--isa", "mmx"], "--isa"),
    (["--log-level", "loud"], "--log-level"),
    (["--session-ttl", "soon"], "--session-ttl"),
    (["--batch-rows", "0"], "--batch-rows"),
    (["stray"], "stray"),
], ids=lambda value: " ".join(value) if isinstance(value, list) else value)
def test_bad_flags(tiny_model, bad, word):
    code, line = run("--model", tiny_model, *bad)
    assert code == 2
    assert word in line


@pytest.mark.parametrize("codec", [
    "nonsense", "xquant-gqa:bits=5", "xquant-gqa:bits", "xquant-gqa:colour=4",
    "xquant-gqa:bits=4,bits=4,", ":", "xquant:bits=-4"])
def test_bad_codecs(flags, tiny_model, codec):
    code, line = run("--model", tiny_model, *flags, "--codec", codec)
    assert code in (1, 2)
    assert "codec" in line


def test_no_such_tls_and_token_files(flags, tiny_model, tmp_path):
    refuses(flags + ["--token-file", tmp_path / "none"], tiny_model,
            tmp_path / "none")
    refuses(flags + ["--tls-cert", tmp_path / "c", "--tls-key",
                     tmp_path / "k"], tiny_model, tmp_path / "c")
    (tmp_path / "junk").write_text("junk\n")
    (tmp_path / "junk").chmod(0o600)
    refuses(flags + ["--tls-cert", tmp_path / "junk", "--tls-key",
                     tmp_path / "junk"], tiny_model, tmp_path / "junk")
    refuses(flags + ["--token-file", tmp_path / "junk"], tiny_model,
            tmp_path / "junk")


def test_no_such_template(flags, tiny_model):
    code, line = run("--model", tiny_model, *flags, "--chat-template", "klingon")
    assert code in (1, 2)
    assert "klingon" in line and "chatml" in line


# What is taken.


def test_ports_in_use(flags, tiny_model):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        more = flags[4:]
        refuses(["--listen", address, "--metrics-listen", "127.0.0.1:0", *more],
                tiny_model, address)
        refuses(["--listen", "127.0.0.1:0", "--metrics-listen", address, *more],
                tiny_model, address)


def test_store_in_use(flags, tiny_model, tmp_path):
    with harness.Server(tiny_model, tmp_path) as server:
        refuses(flags, tiny_model, tmp_path / "store", "in use")
        # The one that has it does not mind.
        server.client().chat(messages="hi")
        server.stop()


def test_two_servers_on_one_port(tiny_model, tmp_path):
    (tmp_path / "other").mkdir()
    with harness.Server(tiny_model, tmp_path) as server:
        refuses(["--listen", server.address, "--metrics-listen", "127.0.0.1:0",
                 "--store-dir", tmp_path / "other" / "store"], tiny_model,
                server.address)


# Stores.


def test_a_store_that_is_a_file(tiny_model, tmp_path, flags):
    (tmp_path / "store").write_text("I was here first")
    refuses(flags, tiny_model, tmp_path / "store")
    assert (tmp_path / "store").read_text() == "I was here first"


def test_a_folder_with_half_a_database_in_it(tiny_model, tmp_path, flags):
    (tmp_path / "store" / "sessions").mkdir(parents=True)
    (tmp_path / "store" / "sessions" / "CURRENT").write_text(
        "MANIFEST-000001\n")
    refuses(flags, tiny_model, tmp_path / "store")


def test_a_place_where_nothing_can_be_written(tiny_model, flags):
    flags = flags[:4] + ["--store-dir", "/proc/xcache-store"]
    refuses(flags, tiny_model, "/proc/xcache-store")


def test_a_store_of_another_model(tiny_model, other_model, tmp_path):
    with harness.Server(tiny_model, tmp_path) as server:
        client = server.client()
        client.sessions.CreateSession(spb.CreateSessionRequest(id="mine"))
        before = client.chat("mine", "hello " * 80)
        server.stop()
    # Serves on; nothing of the other model's is used.
    with harness.Server(other_model, tmp_path) as server:
        client = server.client()
        assert client.chat(messages="hello " * 80).reused == 0
        server.stop()
    # And the first finds all as it was.
    with harness.Server(tiny_model, tmp_path) as server:
        session = server.client().sessions.GetSession(
            spb.GetSessionRequest(id="mine", with_messages=True))
        assert session.messages[-1].content == before.text
        server.stop()


def test_no_space_left_at_the_start(tiny_model, tmp_path):
    with small_disk(tmp_path / "disk", "24m") as disk:
        store = disk / "store"
        flags = ["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0",
                 "--store-dir", store]
        with no_byte_left(disk):
            refuses(flags, tiny_model, store, "space")
        with harness.Server(tiny_model, tmp_path, store=str(store)) as server:
            client = server.client()
            client.sessions.CreateSession(spb.CreateSessionRequest(id="mine"))
            assert (client.chat("mine", "hello " * 200).final.durability ==
                    common_pb2.DURABILITY_LOCAL)
            server.stop()
        # The same of a store that is there, and of its repair: all is kept.
        with no_byte_left(disk):
            refuses(flags, tiny_model, store, "space")
            refuses([*flags, "--repair"], tiny_model, store, "space")
        with harness.Server(tiny_model, tmp_path, store=str(store)) as server:
            assert server.client().chat("mine", "and then?").reused >= 128
            server.stop()


def test_no_space_left_while_it_runs(tiny_model, tmp_path):
    """It serves on, says that nothing is durable, and says so in metrics; and
    goes on as before when there is room again."""
    with small_disk(tmp_path / "disk", "24m") as disk:
        with harness.Server(tiny_model, tmp_path,
                            store=str(disk / "store")) as server:
            client = server.client()

            def turn():
                answer = client.chat("s", "word " * 100,
                                     params=params(max_tokens=2))
                assert answer.final.generated_tokens > 0
                return (answer.final.durability ==
                        common_pb2.DURABILITY_LOCAL)

            client.sessions.CreateSession(spb.CreateSessionRequest(id="s"))
            assert turn()
            assert server.metrics().sum("xcache_disk_degraded") == 0
            with no_byte_left(disk):
                harness.wait_until(lambda: not turn(), what="a lost turn")
                assert not turn()
                metrics = server.metrics()
                assert metrics.sum("xcache_disk_degraded") == 1
                assert metrics.sum("xcache_disk_degradations_total") > 0
                assert metrics.sum("xcache_undurable_sessions") == 1
                assert metrics.sum("xcache_commits_total", result="failed") > 0
            harness.wait_until(
                lambda: server.metrics().sum("xcache_disk_degraded") == 0,
                what="the store to write again")
            assert turn()
            before = client.sessions.GetSession(spb.GetSessionRequest(
                id="s", with_messages=True))
            server.stop()
        with harness.Server(tiny_model, tmp_path,
                            store=str(disk / "store")) as server:
            after = server.client().sessions.GetSession(spb.GetSessionRequest(
                id="s", with_messages=True))
            assert list(after.messages) == list(before.messages)
            server.stop()


def test_too_little_memory(flags, tiny_model):
    refuses(flags + ["--memory-bytes", "1KiB"], tiny_model, "memory")


def test_too_little_disk(flags, tiny_model):
    refuses(flags + ["--disk-bytes", "1KiB"], tiny_model, "--disk-bytes")

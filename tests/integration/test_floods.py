"""Peers that take what they can: whatever they send or leave unsaid costs
bounded memory, descriptors and threads, and the others are served."""

import contextlib
import pathlib
import socket
import threading
import time

import grpc
import pytest
from xcache.v1 import common_pb2 as cpb
from xcache.v1 import inference_pb2 as pb
from xcache.v1 import sessions_pb2 as spb

import harness
import raw_http2
from floods import leave_unfinished, reset_on_many, reset_streams
from harness import fails_with, params, user, wait_until
from latencies import percentile

Code = grpc.StatusCode
MIB = 1 << 20
RESETS = 1000 * int(harness.campaign("RESET_ROUNDS", 30))


@pytest.fixture(scope="module")
def small_server(tiny_model, tmp_path_factory):
    """400 MiB, so 50 MiB for what clients send; messages of up to 6.25 MiB."""
    with harness.Server(tiny_model, tmp_path_factory.mktemp("small"),
                        "--memory-bytes", "400MiB") as running:
        running.client().chat(messages="hi", params=params(max_tokens=2))
        running.ready_bytes = running.resident_bytes()
        yield running


@contextlib.contextmanager
def grows_at_most(server, limit):
    """What the server holds at any moment of the block, over what it held: when
    it was ready, where tests share it, or what one flood left behind would hide
    the next."""
    before = getattr(server, "ready_bytes", server.resident_bytes())
    peak = server.resident_bytes()
    done = threading.Event()

    def watch():
        nonlocal peak
        while not done.wait(0.02):
            peak = max(peak, server.resident_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
        print(f"resident: {before / MIB:.0f} MiB, at most "
              f"{peak / MIB:.0f} MiB")
    # Sanitizers have memory of their own.
    assert harness.sanitized() or peak - before <= limit, (
        f"{(peak - before) / MIB:.0f} MiB more")


def is_served(server):
    """A good client has its answer soon, though what a flood left to be worked
    off may refuse it a connection until then."""
    def answered():
        try:
            server.client().chat(messages="hi", params=params(max_tokens=2))
            return True
        except grpc.RpcError as error:
            if error.code() != Code.UNAVAILABLE:
                raise
            return False

    wait_until(answered, 20, "an answer")


def test_unfinished_messages_cost_bounded_memory(small_server):
    with grows_at_most(small_server, 110 * MIB):
        peers = leave_unfinished(small_server.address, 6, 20, 6 * MIB)
    # And they keep nobody out.
    is_served(small_server)
    for peer in peers:
        peer.close()


def test_who_has_no_token_sends_headers_only(tiny_model, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text("secret alpha\n")
    tokens.chmod(0o600)
    with harness.Server(tiny_model, tmp_path, "--token-file",
                        tokens) as server:
        with grows_at_most(server, 30 * MIB):
            peers = leave_unfinished(server.address, 4, 60, 15 * MIB)
        for peer in peers:
            peer.close()
        assert server.metrics().requests()["Chat", "UNAUTHENTICATED"] >= 240
        server.client("secret").chat(messages="hi",
                                     params=params(max_tokens=2))


def test_compressed_messages_are_refused_before_they_are_inflated(
        small_server):
    client = small_server.client()
    bomb = pb.TokenizeRequest(text="a" * (200 * MIB))
    with grows_at_most(small_server, 40 * MIB):
        with fails_with(Code.UNIMPLEMENTED):
            client.inference.Tokenize(bomb, compression=grpc.Compression.Gzip)
    # Nor where the header does not tell of it.
    peer = raw_http2.Connection(small_server.address)
    stream = peer.open(raw_http2.call_headers("/xcache.v1.Inference/Tokenize"))
    peer.send_data(stream, raw_http2.message_prefix(4, compressed=True) +
                   b"1234")
    is_served(small_server)
    peer.close()


def test_streams_that_are_reset_at_once_cost_bounded_memory(small_server):
    is_served(small_server)
    # It was 200 MiB for the usual number and 5.7 GiB for the campaign's.
    with grows_at_most(small_server, 110 * MIB):
        sent = connections = 0
        while sent < RESETS:
            sent += reset_streams(small_server.address)
            connections += 1
        is_served(small_server)
    print(f"{sent} streams reset on {connections} connections")
    assert small_server.metrics().sum("xcache_connections_refused_total",
                                      reason="flood") > 0


def test_resets_on_connections_of_which_none_has_many(small_server):
    is_served(small_server)
    with grows_at_most(small_server, 110 * MIB):
        peers = reset_on_many(small_server.address, 200, 500)
        is_served(small_server)
        time.sleep(1)  # they are worked off for longer than they are sent
    for peer in peers:
        peer.close()


def test_idle_connections_leave_descriptors_for_others(tiny_model, tmp_path):
    with harness.Server(tiny_model, tmp_path, descriptors=(512, 1024)) as server:
        host, port = server.address.rsplit(":", 1)
        idle = []
        with contextlib.suppress(OSError):
            for _ in range(1100):
                idle.append(socket.create_connection((host, int(port)), 5))
        # They are there still, and have said nothing for longer than they may.
        time.sleep(5.5)
        client = server.client()
        client.sessions.CreateSession(spb.CreateSessionRequest(id="mine"))
        answer = client.chat("mine", messages="hi", params=params(max_tokens=2))
        assert answer.final.durability == cpb.DURABILITY_LOCAL
        for connection in idle:
            connection.close()
        server.client().chat(messages="hi", params=params(max_tokens=2))
        metrics = server.metrics()
        assert metrics.sum("process_max_fds") == 1024
        assert metrics.sum("xcache_connections_refused_total") > 0
        assert server.log().count("connections state=") == 1, server.log()


def test_too_few_descriptors_are_told_at_start(tiny_model, tmp_path):
    with pytest.raises(harness.StartError) as error:
        harness.Server(tiny_model, tmp_path, descriptors=(64, 64))
    assert error.value.code == 1
    assert "64 files open" in error.value.log


def test_half_open_peers_do_not_keep_a_scrape_waiting(server):
    host, port = server.metrics_address.rsplit(":", 1)
    silent = [socket.create_connection((host, int(port))) for _ in range(40)]
    for peer in silent[::2]:
        peer.sendall(b"GET /metrics HTTP/1.1\r\nHost: ")
    start = time.monotonic()
    server.metrics()
    # It was 30 s; a slow machine is not what this is about.
    assert time.monotonic() - start < 10
    for peer in silent:
        peer.close()


def test_streams_that_wait_cost_no_threads(server):
    def threads():
        return len(list(pathlib.Path(
            f"/proc/{server.process.pid}/task").iterdir()))

    before = threads()
    # gRPC's own reflection service keeps a thread on each stream.
    reflection = raw_http2.call_headers(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
    watch = raw_http2.call_headers("/grpc.health.v1.Health/Watch")
    peer = raw_http2.Connection(server.address)
    for _ in range(60):
        peer.open(reflection)
        peer.send_data(peer.open(watch), raw_http2.message_prefix(0))
        peer.read(0.001)
    time.sleep(0.5)
    assert threads() - before <= 12
    server.client().chat(messages="hi", params=params(max_tokens=2))
    peer.close()


def test_cheap_calls_do_not_wait_behind_expensive_ones(server, client):
    client.sessions.CreateSession(spb.CreateSessionRequest(id="cheap"))
    text = "word " * (12 * MIB // 5 // 4)
    big = pb.ChatRequest(messages=[user(text)] * 4, params=params())
    pages = pb.TokenizeRequest(text="word " * (4 * MIB // 5))
    with contextlib.ExitStack() as stack:
        running = []
        for i in range(24):
            other = stack.enter_context(contextlib.closing(
                server.channel()))
            other = harness.Client(other)
            running.append(other.inference.Chat(big) if i % 3 else
                           other.inference.Tokenize.future(pages))
        waits = []
        end = time.monotonic() + 4  # they take a while to arrive
        while time.monotonic() < end:
            start = time.monotonic()
            client.sessions.GetSession(spb.GetSessionRequest(id="cheap"),
                                       timeout=60)
            waits.append(time.monotonic() - start)
        start = time.monotonic()
        client.inference.Tokenize(pb.TokenizeRequest(text="short"), timeout=60)
        short = time.monotonic() - start
        print(f"p95 {percentile(waits, 0.95) * 1e3:.0f} ms, most "
              f"{max(waits) * 1e3:.0f} ms, a short text {short * 1e3:.0f} ms")
        for call in running:
            call.cancel()
        # It was 3.9 s for both, and 21 s where the texts were longer.
        slow = 10 if harness.sanitized() else 1
        assert percentile(waits, 0.95) < 2 * slow
        assert short < 3 * slow

"""The fleet's parts do what the tests of it rely on: an S3 server that keeps
what it was given, a proxy that does the harm that it is told to do, an Envoy that
follows its file, a client that is told about every turn once."""

import random
import signal
import socket
import time

import boto3
import botocore.config
import botocore.exceptions
import grpc
import pytest
from xcache.v1 import sessions_pb2 as spb

import harness
from balancer import Balancer
from fault_proxy import Fault, FaultProxy
from object_server import BUCKET, REGION
from talks import Backend, Talk, Talker, check_twins, connect

BODY = random.Random(1).randbytes(200_000)
FAILURES = (botocore.exceptions.ClientError,
            botocore.exceptions.HTTPClientError,
            botocore.exceptions.EndpointConnectionError)


def client(url, key_id="operator", secret="operators-secret"):
    return boto3.client(
        "s3", endpoint_url=url, region_name=REGION, aws_access_key_id=key_id,
        aws_secret_access_key=secret, config=botocore.config.Config(
            s3={"addressing_style": "path"}, proxies={}, connect_timeout=1,
            read_timeout=1, retries={"total_max_attempts": 1},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required"))


def read(s3, key="parts/a"):
    return s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()


@pytest.fixture
def proxy(store):
    store.client().put_object(Bucket=BUCKET, Key="parts/a", Body=BODY)
    with FaultProxy(store.port) as running:
        yield running


def test_a_proxy_that_does_nothing_is_not_noticed(store, proxy):
    s3 = client(proxy.url)
    assert read(s3) == BODY
    s3.put_object(Bucket=BUCKET, Key="parts/b", Body=BODY[::-1])
    assert read(store.client(), "parts/b") == BODY[::-1]
    etag = s3.head_object(Bucket=BUCKET, Key="parts/b")["ETag"]
    for condition in ({"IfNoneMatch": "*"}, {"IfMatch": '"another"'}):
        with pytest.raises(botocore.exceptions.ClientError, match="PreconditionFailed"):
            s3.put_object(Bucket=BUCKET, Key="parts/b", Body=b"x", **condition)
    s3.put_object(Bucket=BUCKET, Key="parts/b", Body=b"x", IfMatch=etag)
    listed = s3.list_objects_v2(Bucket=BUCKET, Prefix="parts/")["Contents"]
    assert {o["Key"]: o["Size"] for o in listed} == {
        "parts/a": len(BODY), "parts/b": 1}
    s3.delete_object(Bucket=BUCKET, Key="parts/b")
    assert store.objects("parts/") == {"parts/a": len(BODY)}
    assert proxy.downloaded("/parts/a$") == len(BODY)
    assert proxy.faults == 0


def test_each_fault_is_one(store, proxy):
    s3 = client(proxy.url)
    with proxy.injected(Fault(status=503, code="SlowDown")):
        with pytest.raises(botocore.exceptions.ClientError, match="SlowDown"):
            read(s3)
    for cut in ("reset", "end"):
        with proxy.injected(Fault(cut=cut)):
            with pytest.raises(FAILURES + (
                    botocore.exceptions.ResponseStreamingError,
                    botocore.exceptions.IncompleteReadError)):
                read(s3)
            before = store.objects("parts/cut")
            for i in range(12):
                with pytest.raises(FAILURES):
                    s3.put_object(Bucket=BUCKET, Key=f"parts/cut-{cut}{i}",
                                  Body=BODY)
            # Some arrived, whole, and some did not.
            arrived = store.objects(f"parts/cut-{cut}")
            assert set(arrived.values()) == {len(BODY)}
            assert len(arrived) < 12, before
    with proxy.injected(Fault(flip=True)):
        found = read(s3)
        assert len(found) == len(BODY)
        wrong = [a ^ b for a, b in zip(found, BODY) if a != b]
        assert len(wrong) == 1 and wrong[0].bit_count() == 1
    with proxy.injected(Fault(delay=0.4)):
        start = time.monotonic()
        assert read(s3) == BODY
        assert time.monotonic() - start >= 0.4
    for fault in (Fault(silent=True), Fault(refused=True), Fault(delay=3)):
        with proxy.injected(fault):
            with pytest.raises(FAILURES):
                read(s3)
        # What began then is through, and new calls come through again.
        assert read(client(proxy.url)) == BODY
    proxy.faults = 0
    with proxy.injected(Fault(share=0.5, status=500, code="InternalError")):
        for _ in range(40):
            try:
                read(s3)
            except FAILURES:
                pass
    assert 5 < proxy.faults < 35


def test_what_was_put_outlives_a_kill_and_keys_change(store):
    s3 = store.client()
    s3.put_object(Bucket=BUCKET, Key="parts/kept", Body=BODY)
    store.let_in("one", "ones-secret")

    def is_let_in(key_id, secret):
        try:
            client(store.url, key_id, secret).list_objects_v2(Bucket=BUCKET)
            return True
        except botocore.exceptions.ClientError:
            return False

    assert is_let_in("one", "ones-secret")
    assert not is_let_in("one", "wrong")
    store.shut_out("one")
    assert not is_let_in("one", "ones-secret")
    store.let_in("two", "twos-secret")
    store.kill()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", store.port)) != 0
    store.start()
    assert read(store.client(), "parts/kept") == BODY
    assert is_let_in("two", "twos-secret")
    assert not is_let_in("one", "ones-secret")


def test_envoy_follows_its_file_and_the_servers_health(tiny_model, tmp_path):
    def session(client, name):
        client.sessions.CreateSession(
            spb.CreateSessionRequest(id=name))

    with Balancer(tmp_path / "envoy") as balancer:
        servers = {}
        for name in "ab":
            (tmp_path / name).mkdir()
            server = harness.Server(tiny_model, tmp_path / name)
            servers[server.address] = server
            balancer.add(server.address)
        try:
            balancer.wait_healthy(2)
            backend = Backend(connect(balancer.address))
            talks = [Talk(f"talk-{i}", "Short.", i) for i in range(12)]
            for talk in talks:
                backend.create(talk)
                where = {backend.ask(talk, "Hi", talk.next_params(2)).server
                         for _ in range(2)}
                assert len(where) == 1  # a session stays
            used = {talk.turns[0].server for talk in talks}
            assert used == set(servers)
            # Killed: soon all go to the other one, which does not know some.
            (gone, server), (_, other) = servers.items()
            server.process.send_signal(signal.SIGKILL)
            balancer.wait_healthy(1)
            for i in range(8):
                session(backend.client, f"new-{i}")
            assert other.metrics().sum("xcache_sessions") >= 8
            # Taken out of the file while it is healthy: at once.
            balancer.remove(gone)
            balancer.remove(other.address)
            balancer.wait_for(lambda: balancer.healthy() == 0, 10, "none")
            with harness.fails_with(grpc.StatusCode.UNAVAILABLE):
                session(backend.client, "nowhere")
        finally:
            for server in servers.values():
                server.__exit__()


def test_a_client_knows_each_turn_once_and_so_does_the_twin(
        tiny_model, tmp_path):
    """Through kills of a server that has no fleet."""
    listen = ("--listen", f"127.0.0.1:{harness.free_port()}")
    server = harness.Server(tiny_model, tmp_path, *listen)
    try:
        backend = Backend(connect(server.address))
        talk = Talk("talk", "You know words.", 7)
        backend.create(talk)
        talker = Talker(backend, [talk], long_prompt=100)
        talker.start()
        for _ in range(4):
            before = talker.asked
            harness.wait_until(lambda: talker.asked > before)
            server.kill()
            server = harness.Server(tiny_model, tmp_path, *listen)
        talker.finish()
        backend.check(talk)
        assert len(talk.turns) == talker.asked
        assert backend.seen
        check_twins(tiny_model, tmp_path / "twin", [talk])
        # A client that is told something else finds out.
        talk.turns[2].answer += "?"
        with pytest.raises(AssertionError):
            backend.check(talk)
        with pytest.raises(AssertionError, match="turn 3"):
            check_twins(tiny_model, tmp_path / "twin2", [talk])
    finally:
        server.__exit__()

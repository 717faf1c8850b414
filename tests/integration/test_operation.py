"""What an operator relies on: credentials change without a restart, what a
killed server left behind misleads nobody, errors and logs say why."""

import os
import re
import signal
import ssl
import subprocess
import uuid

import grpc
import pytest
from xcache.v1 import errors_pb2 as errors
from xcache.v1 import inference_pb2 as pb
from xcache.v1 import sessions_pb2 as spb

import harness
from harness import fails_with, params, user, wait_until

Code = grpc.StatusCode


# Credentials.


def make_certificate(folder):
    """A new key and certificate, in the old ones' place."""
    folder.mkdir(exist_ok=True)
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
         "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj",
         "/CN=localhost", "-addext",
         "subjectAltName=IP:127.0.0.1,DNS:localhost", "-keyout",
         folder / "key.pem.new", "-out", folder / "cert.pem.new"],
        check=True, capture_output=True)
    for name in ("cert.pem", "key.pem"):
        os.rename(folder / f"{name}.new", folder / name)
    return (folder / "cert.pem").read_text()


def served_certificate(address):
    host, port = address.rsplit(":", 1)
    return ssl.get_server_certificate((host, int(port)), timeout=10)


def reloads(server, what, result):
    return server.metrics().sum("xcache_credential_reloads_total", what=what,
                                result=result)


def test_a_new_certificate_is_served_without_a_restart(tiny_model, tmp_path):
    first = make_certificate(tmp_path / "tls")
    with harness.Server(tiny_model, tmp_path, "--tls-cert",
                        tmp_path / "tls/cert.pem", "--tls-key",
                        tmp_path / "tls/key.pem",
                        tls_ca=first.encode()) as server:
        old = server.client()
        old.chat(messages="hi", params=params(max_tokens=2))
        assert served_certificate(server.address) == first
        second = make_certificate(tmp_path / "tls")
        wait_until(lambda: served_certificate(server.address) == second, 10,
                   "the new certificate")
        # Who is connected goes on; who comes anew trusts the new one.
        old.chat(messages="hi", params=params(max_tokens=2))
        server.tls_ca = second.encode()
        server.client().chat(messages="hi", params=params(max_tokens=2))
        # A bad one changes nothing.
        (tmp_path / "tls/cert.pem").write_text("no certificate")
        wait_until(lambda: reloads(server, "tls", "failed") > 0, 10,
                   "the bad certificate to be noticed")
        assert served_certificate(server.address) == second
        assert "credentials not reloaded what=tls" in server.log()


def test_tokens_change_without_a_restart(tiny_model, tmp_path):
    tokens = tmp_path / "tokens"
    # As a Windows editor writes it.
    tokens.write_bytes(b"\xef\xbb\xbfold-secret alpha\r\n")
    tokens.chmod(0o600)
    with harness.Server(tiny_model, tmp_path, "--token-file",
                        tokens) as server:
        ask = pb.GetModelInfoRequest()
        server.client("old-secret").inference.GetModelInfo(ask)
        tokens.write_text("new-secret alpha\n")
        wait_until(lambda: reloads(server, "tokens", "ok") > 0, 10,
                   "the new tokens")
        server.client("new-secret").inference.GetModelInfo(ask)
        with fails_with(Code.UNAUTHENTICATED):
            server.client("old-secret").inference.GetModelInfo(ask)
        # Of a bad file nothing is taken; SIGHUP says so at once.
        tokens.write_text("a line of more words\n")
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: reloads(server, "tokens", "failed") > 0, 10,
                   "the bad file to be noticed")
        server.client("new-secret").inference.GetModelInfo(ask)


def test_a_key_for_everybody_is_refused(tiny_model, tmp_path):
    make_certificate(tmp_path / "tls")
    (tmp_path / "tls/key.pem").chmod(0o644)
    with pytest.raises(harness.StartError) as error:
        harness.Server(tiny_model, tmp_path, "--tls-cert",
                       tmp_path / "tls/cert.pem", "--tls-key",
                       tmp_path / "tls/key.pem")
    assert "--tls-key" in error.value.log and "chmod" in error.value.log


# What is left behind, and what leaks in.


def is_locked(path):
    return subprocess.run(["flock", "-n", path, "true"]).returncode != 0


def test_the_ready_file_of_a_killed_server_misleads_nobody(tiny_model,
                                                           tmp_path):
    with harness.Server(tiny_model, tmp_path) as server:
        ready = server.ready_file
        assert is_locked(ready)
        server.kill()
        assert ready.exists() and not is_locked(ready)
        kept = ready.read_text()
    # The next one takes it away before anything that may fail.
    wrong = subprocess.run(
        [harness.SERVER, "--model", tmp_path / "none.gguf", "--listen",
         "127.0.0.1:0", "--metrics-listen", "none", "--store-dir", "none",
         "--ready-file", ready], capture_output=True, text=True)
    assert wrong.returncode == 1
    assert not ready.exists(), kept


def test_a_proxy_of_the_environment_does_not_lead_away(server, tmp_path):
    environment = {**os.environ, "HOME": str(tmp_path), "no_proxy": ""}
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "grpc_proxy"):
        environment[name] = "http://127.0.0.1:9"  # discards, if it is there
    done = subprocess.run(
        [harness.COMMAND, "--address", server.address, "info"],
        capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr


# Errors and logs.


def reason(error):
    """(reason, whether it says when to try again) of an error's details."""
    status = errors.ErrorStatus()
    for key, value in error.trailing_metadata():
        if key == "grpc-status-details-bin":
            status.ParseFromString(value)
    assert status.code == error.code().value[0]
    assert status.message == error.details()
    info = errors.ErrorInfo()
    info.ParseFromString(status.details[0].value)
    assert status.details[0].type_url.endswith("/google.rpc.ErrorInfo")
    assert info.domain == "xcache"
    assert "ERROR_REASON_" + info.reason in errors.ErrorReason.keys()
    retry = [d for d in status.details
             if d.type_url.endswith("/google.rpc.RetryInfo")]
    return info.reason, bool(retry)


def failure(call):
    with pytest.raises(grpc.RpcError) as error:
        call()
    return error.value


def test_errors_tell_programs_why(server, client):
    s = client.sessions
    s.CreateSession(spb.CreateSessionRequest(id="reasons"))
    client.chat("reasons", "hi", params=params(max_tokens=2))
    found = {}
    for call in [
            lambda: s.GetSession(spb.GetSessionRequest(id="nobody")),
            lambda: s.GetSession(spb.GetSessionRequest(id="a/b")),
            lambda: s.CreateSession(spb.CreateSessionRequest(id="reasons")),
            lambda: client.chat("reasons", "hi", expected_turn=7),
            lambda: client.chat(messages="word " * 20000)]:
        error = failure(call)
        found[reason(error)[0]] = error.code()
    assert found == {
        "SESSION_NOT_FOUND": Code.NOT_FOUND,
        "INVALID_REQUEST": Code.INVALID_ARGUMENT,
        "SESSION_EXISTS": Code.ALREADY_EXISTS,
        "TURN_CONFLICT": Code.ABORTED,
        "CONTEXT_TOO_LONG": Code.INVALID_ARGUMENT,
    }
    # The other ABORTED.
    running = client.inference.Chat(pb.ChatRequest(
        session_id="reasons", messages=[user("go on")],
        params=params(max_tokens=2000, ignore_eos=True)))
    next(running)
    busy = failure(lambda: client.chat("reasons", "hi"))
    assert busy.code() == Code.ABORTED
    assert reason(busy)[0] == "SESSION_BUSY"
    running.cancel()


def test_request_lines_name_request_and_session(server, client):
    mine = uuid.uuid4().hex
    client.sessions.CreateSession(
        spb.CreateSessionRequest(id="logged"),
        metadata=(("x-request-id", mine),))
    lines = [line for line in server.log().splitlines()
             if f"request_id={mine}" in line]
    assert len(lines) == 1
    for part in (" info request method=CreateSession", " code=OK ",
                 " tenant=default ", " session=logged"):
        assert part in lines[0]
    # One that brings none is given one, and told.
    answer, call = client.sessions.GetSession.with_call(
        spb.GetSessionRequest(id="logged"))
    given = dict(call.trailing_metadata())["x-request-id"]
    # In quotes where it could be read as a number.
    assert len(given) == 16
    assert re.search(f'request_id="?{given}\\b', server.log())


def test_polls_while_loading_are_no_failures(real_model, tmp_path):
    port = harness.free_port()
    with harness.Server(real_model, tmp_path, "--listen",
                        f"127.0.0.1:{port}", wait=False) as server:
        done = subprocess.run(
            [harness.COMMAND, "--address", f"127.0.0.1:{port}", "--wait", "60",
             "info"], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        server.wait_ready()
        assert ("GetModelInfo", "UNAVAILABLE") not in (
            server.metrics().requests())
        assert "code=UNAVAILABLE" not in server.log()

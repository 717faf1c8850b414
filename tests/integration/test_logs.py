"""The log: as JSON, whatever clients send, and with the trace of a call."""

import hashlib
import json
import os
import re
import subprocess

import grpc
import pytest
from xcache.v1 import inference_pb2 as pb
from xcache.v1 import sessions_pb2 as spb

import harness
from harness import params

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"


@pytest.fixture(scope="module")
def json_server(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("json")
    (folder / "tokens").write_text("secret 42\n")
    (folder / "tokens").chmod(0o600)
    with harness.Server(tiny_model, folder, "--log-format", "json",
                        "--token-file", folder / "tokens") as server:
        yield server


def lines(server):
    """All of them: every one is an object with what LOGS.md promises."""
    out = []
    for line in server.log().split("\n")[:-1]:
        entry = json.loads(line)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z",
                            entry["time"])
        assert entry["level"] in ("trace", "debug", "info", "warning", "error",
                                  "critical")
        assert entry["event"]
        assert list(entry)[:3] == ["time", "level", "event"]
        out.append(entry)
    return out


def request_line(server, request_id):
    found = [e for e in lines(server)
             if e["event"] == "request" and e.get("request_id") == request_id]
    assert len(found) == 1
    return found[0]


def test_a_request_is_one_object(json_server):
    client = json_server.client("secret")
    client.sessions.CreateSession(spb.CreateSessionRequest(id="7"))
    answer = harness.Answer(client.inference.Chat(
        pb.ChatRequest(session_id="7", messages=[harness.user("hello")],
                       params=params(max_tokens=4)),
        metadata=(("x-request-id", "123"),)))
    entry = request_line(json_server, "123")
    assert entry["method"] == "Chat" and entry["code"] == "OK"
    # Names stay names.
    assert entry["tenant"] == "42" and entry["session"] == "7"
    assert entry["session_hash"] == hashlib.sha256(b"42/7").hexdigest()[:16]
    assert entry["generated_tokens"] == answer.final.generated_tokens
    assert isinstance(entry["ms"], float) and entry["ms"] > 0
    assert entry["turn"] == 1
    serving = [e for e in lines(json_server) if e["event"] == "serving"]
    assert serving[0]["listen"] == json_server.address


HOSTILE = ['a" level=error b="', "x\\", "line\nbreak", "\x1b[31mred", "ümläut",
           "tab\t", "\u2028", "{\"a\":1}", "k=v k2=v2", " ", "\x7f\x01"]


def test_what_clients_send_stays_a_value(json_server):
    client = json_server.client("secret")
    for number, text in enumerate(HOSTILE):
        with harness.fails_with(grpc.StatusCode.INVALID_ARGUMENT):
            client.sessions.CreateSession(
                spb.CreateSessionRequest(id=text),
                metadata=(("x-request-id", f"hostile {number}"),))
        entry = request_line(json_server, f"hostile {number}")
        assert entry["level"] == "info" and entry["tenant"] == "42"
        shown = "".join("?" if c < " " and c not in "\n\r\t" or c == "\x7f"
                        else c for c in text)
        assert entry["session"] == shown
        assert entry["reason"] == "INVALID_REQUEST"


def test_text_and_json_have_the_same_keys(json_server, server):
    for running, token in ((json_server, "secret"), (server, None)):
        harness.Answer(running.client(token).inference.Chat(
            pb.ChatRequest(messages=[harness.user("hello")],
                           params=params(max_tokens=4)),
            metadata=(("x-request-id", "keys"),
                      ("traceparent", f"00-{TRACE}-{SPAN}-01"))))
    line = [text for text in server.log().splitlines()
            if "request_id=keys" in text][0]
    keys = re.findall(r' ([a-z_]+)=(?:"(?:[^"\\]|\\.)*"|\S*)', line)
    assert keys == list(request_line(json_server, "keys"))[3:]
    assert {"trace_id", "span_id", "generated_tokens"} <= set(keys)


def test_a_server_that_does_not_start_says_so_in_json(tmp_path):
    with pytest.raises(harness.StartError) as error:
        harness.Server("/no/such.gguf", tmp_path, "--log-format", "json")
    last = json.loads(error.value.log.splitlines()[-1])
    assert last["event"] == "not started" and last["level"] == "critical"
    assert "/no/such.gguf" in last["error"]


@pytest.mark.parametrize("header, is_taken", [
    (f"00-{TRACE}-{SPAN}-01", True),
    (f"cc-{TRACE}-{SPAN}-00-later", True),
    (f"00-{TRACE}-{SPAN}-01-more", False),
    (f"00-{TRACE.upper()}-{SPAN}-01", False),
    (f"00-{'0' * 32}-{SPAN}-01", False),
    (f"ff-{TRACE}-{SPAN}-01", False),
    ("nonsense", False),
    ("", False)])
def test_a_call_is_of_the_trace_that_its_header_names(json_server, header,
                                                      is_taken):
    request_id = f"trace-{header}"
    _, call = json_server.client("secret").sessions.ListSessions.with_call(
        spb.ListSessionsRequest(), metadata=(("x-request-id", request_id),
                                             ("traceparent", header)))
    entry = request_line(json_server, request_id)
    if is_taken:
        assert (entry["trace_id"], entry["span_id"]) == (TRACE, SPAN)
    else:
        assert "trace_id" not in entry and "span_id" not in entry
    # The specification has no header for an answer.
    assert "traceparent" not in dict(call.trailing_metadata())


def test_two_traces_are_none(json_server):
    json_server.client("secret").sessions.ListSessions(
        spb.ListSessionsRequest(), metadata=(
            ("x-request-id", "two"), ("traceparent", f"00-{TRACE}-{SPAN}-01"),
            ("traceparent", f"00-{TRACE}-{SPAN}-01")))
    assert "trace_id" not in request_line(json_server, "two")


def test_the_command_passes_its_trace_on(json_server):
    for trace, wanted in ((f"00-{TRACE}-{SPAN}-01", TRACE), ("bad\nline", None)):
        subprocess.run(
            [harness.COMMAND, "--address", json_server.address, "info"],
            env={**os.environ, "XCACHE_TOKEN": "secret", "TRACEPARENT": trace},
            check=True, capture_output=True, timeout=60)
        last = [e for e in lines(json_server)
                if e.get("method") == "GetModelInfo"][-1]
        assert last.get("trace_id") == wanted

"""What comes over HTTP and is none: each gets a clear 4xx or the end of its
connection, costs bounded memory, and the others are served."""

import contextlib
import json
import socket

import pytest

import harness
from harness import params, wait_until
from test_floods import grows_at_most

MIB = 1 << 20
PATH = "/v1/chat/completions"
GOOD = json.dumps({"messages": [{"role": "user", "content": "hi"}],
                   "max_tokens": 1}).encode()


@pytest.fixture(scope="module")
def server(tiny_model, tmp_path_factory):
    """400 MiB, so 50 MiB for what clients send; bodies of up to 6.25 MiB."""
    with harness.Server(tiny_model, tmp_path_factory.mktemp("http"),
                        "--http-listen", "127.0.0.1:0", "--memory-bytes",
                        "400MiB") as running:
        assert post(running, GOOD)[0] == 200
        running.ready_bytes = running.resident_bytes()
        yield running


def connect(server):
    host, port = server.http_address.rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=60)


def read_answer(s):
    """Status and JSON of one answer with a length; None where there is none."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = s.recv(65536)
        if not part:
            return None, data
        data += part
    head, body = data.split(b"\r\n\r\n", 1)
    lines = head.decode().split("\r\n")
    headers = {k.lower(): v for k, v in
               (line.split(": ", 1) for line in lines[1:])}
    while len(body) < int(headers["content-length"]):
        part = s.recv(65536)
        assert part, "the body was cut off"
        body += part
    return int(lines[0].split()[1]), json.loads(body)


def exchange(server, data):
    """Sends it all, and returns the first answer and whether the connection is
    closed after it."""
    with connect(server) as s:
        s.sendall(data)
        status, body = read_answer(s)
        s.settimeout(3)
        try:
            closed = s.recv(1) == b""
        except TimeoutError:
            closed = False
        except ConnectionResetError:
            closed = True
        return status, body, closed


def request(body=GOOD, *headers, method="POST", path=PATH, length=True):
    lines = [f"{method} {path} HTTP/1.1", "Host: x",
             "Content-Type: application/json", *headers]
    if length:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def post(server, body, path=PATH):
    with connect(server) as s:
        s.sendall(request(body, path=path))
        return read_answer(s)


def still_serves(server):
    status, body = post(server, GOOD)
    assert status == 200 and body["choices"]


BODIES = {
    "nothing": b"",
    "no JSON": b"hello",
    "cut": GOOD[:-3],
    "more than one": GOOD + GOOD,
    "an array": b"[1]",
    "a comment": b'{/* */}',
    "no UTF-8": b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}',
    "a lone surrogate":
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
    "a number too large": b'{"temperature": 1e999}',
    "NaN": b'{"temperature": NaN}',
    "deep arrays": b"[" * 100000,
    "deep objects": b'{"a":' * 100000,
    "deep and whole": b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}",
    "zero bytes": bytes(1000),
}


def test_a_bodys_tree_takes_memory_only_while_it_is_there(server):
    """Of two trees, of which each takes most of what there is, the first one is
    gone while its answer still comes."""
    body = json.dumps({**json.loads(GOOD), "more": [{"a": 0}] * 80000,
                       "stream": True, "max_tokens": 2000,
                       "ignore_eos": True}).encode()
    with connect(server) as s:
        s.sendall(request(body))
        assert s.recv(12) == b"HTTP/1.1 200"
        status, answer = post(server, BODIES["deep objects"])
        assert status == 400, answer


@pytest.mark.parametrize("name", BODIES)
def test_bodies_that_are_no_request(server, name):
    for path in (PATH, "/v1/responses", "/v1/conversations",
                 "/v1/conversations/x"):
        # A conversation may begin with nothing.
        if (name, path) != ("nothing", "/v1/conversations"):
            status, body = post(server, BODIES[name], path)
            assert status == 400, (path, body)
    assert body["error"]["type"] == "invalid_request_error"
    assert body["error"]["message"]
    still_serves(server)


# What two servers in a row might read differently: all are refused, and nothing
# after them is taken for a request.
SMUGGLING = {
    "two lengths": request(GOOD, "Content-Length: 5"),
    "two lengths in one": request(GOOD, f"Content-Length: {len(GOOD)}, 5",
                                  length=False),
    "length and chunks": request(b"0\r\n\r\n", "Transfer-Encoding: chunked"),
    "chunks and length": request(
        b"0\r\n\r\n", "Transfer-Encoding: chunked", "Content-Length: 5",
        length=False),
    "another coding": request(b"", "Transfer-Encoding: gzip", length=False),
    "two codings": request(
        b"0\r\n\r\n", "Transfer-Encoding: gzip, chunked", length=False),
    "codings twice": request(
        b"0\r\n\r\n", "Transfer-Encoding: chunked",
        "Transfer-Encoding: identity", length=False),
    "nearly chunked": request(b"0\r\n\r\n", "Transfer-Encoding: xchunked",
                              length=False),
    "a space before the colon": request(GOOD, "Transfer-Encoding : chunked"),
    "a negative length": request(GOOD, "Content-Length: -5", length=False),
    "a length with a sign": request(
        GOOD, f"Content-Length: +{len(GOOD)}", length=False),
    "a length beyond numbers": request(
        GOOD, "Content-Length: 99999999999999999999", length=False),
    "chunks of no size": request(
        b"zz\r\nhello\r\n0\r\n\r\n", "Transfer-Encoding: chunked",
        length=False),
    "chunks of a huge size": request(
        b"fffffffffffffffff\r\nx", "Transfer-Encoding: chunked",
        length=False),
    "two hosts": request(GOOD, "Host: y"),
    "no host": request().replace(b"Host: x\r\n", b""),
    "two tokens": request(GOOD, "Authorization: Bearer a",
                          "Authorization: Bearer b"),
    "bare line ends": request().replace(b"\r\n", b"\n"),
    "a name with a space": request(GOOD, "Bad Name: x"),
    "a value with a zero byte": request(GOOD, "X: a\0b"),
    "an unknown version": request().replace(b"HTTP/1.1", b"HTTP/1.7"),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
    "nonsense": b"\x00\x01\x02\x03\r\n\r\n",
}


@pytest.mark.parametrize("name", SMUGGLING)
def test_requests_that_can_be_read_in_two_ways(server, name):
    before = server.metrics().requests()["ListModels", "OK"]
    hidden = request(b"", method="GET", path="/v1/models", length=False)
    status, body, closed = exchange(server, SMUGGLING[name] + hidden)
    assert status is not None and 400 <= status < 500, (status, body)
    assert closed
    assert server.metrics().requests()["ListModels", "OK"] == before
    still_serves(server)


def test_unknown_paths_methods_and_types(server):
    assert exchange(server, request(path="/v1/nothing"))[0] == 404
    assert exchange(server, request(method="PUT"))[0] == 405
    assert exchange(server, request(method="GET", path="/health"))[0] == 200
    assert exchange(server, request().replace(b"application/json",
                                              b"text/plain"))[0] == 415
    assert exchange(server, request(GOOD, "Content-Encoding: gzip"))[0] == 415
    status, body, _ = exchange(server, request(method="GET",
                                               path="/v1/models/%74iny"))
    assert status == 200 and body["id"] == "tiny"


def test_heads_that_are_too_large(server):
    for head in ("X: " + "a" * 20000, "\r\n".join(
            f"X{i}: {i}" for i in range(3000))):
        status, _, closed = exchange(server, request(GOOD, head))
        assert status == 431 and closed


def test_bodies_that_are_too_large(server):
    with grows_at_most(server, 60 * MIB):
        # Told by its length, before it is sent.
        status, body, closed = exchange(
            server, request(b"", f"Content-Length: {10 * MIB}", length=False))
        assert status == 413 and closed
        # And as it comes, without one.
        with connect(server) as s:
            s.sendall(request(b"", "Transfer-Encoding: chunked",
                              length=False))
            chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
            try:
                for _ in range(160):
                    s.sendall(chunk)
            except (ConnectionResetError, BrokenPipeError):
                pass
            assert read_answer(s)[0] == 413
    still_serves(server)


def test_trees_that_are_much_larger_than_their_text(server):
    """6 MB of brackets would be hundreds of MB of values."""
    with grows_at_most(server, 60 * MIB):
        for unit in (b"[],", b"0,", b'{"":0},', b'"",'):
            status, body = post(
                server, b'{"a":[' + unit * (6_000_000 // len(unit)) + b"0]}")
            assert status in (413, 429), body
    still_serves(server)


def test_many_bodies_at_once_take_bounded_memory(server):
    """Each announces 6 MiB and sends nearly all; a few fit."""
    body = b" " * (6 * MIB)
    sockets = []
    with grows_at_most(server, 60 * MIB):
        for _ in range(40):
            s = connect(server)
            s.settimeout(1)
            try:
                s.sendall(request(body)[:-10])
            except (TimeoutError, ConnectionResetError, BrokenPipeError):
                pass
            sockets.append(s)
        refused = 0
        for s in sockets:
            try:
                refused += read_answer(s)[0] == 429
            except TimeoutError:
                pass
            except ConnectionResetError:
                refused += 1
        assert refused >= 30
        for s in sockets:
            s.close()
    wait_until(lambda: post(server, GOOD)[0] == 200)


def test_who_sends_slowly_is_cut_off(server):
    """A byte now and then does not keep a connection: 10 s for a head."""
    data = request(b"", "X: " + "a" * 400, length=False)
    sent = 0
    with connect(server) as s:
        s.settimeout(0.5)
        try:
            for byte in data:
                s.sendall(bytes([byte]))
                sent += 1
                try:
                    assert read_answer(s)[0] in (408, None)
                    break
                except TimeoutError:
                    continue
        except (ConnectionResetError, BrokenPipeError):
            pass
    assert sent < len(data)
    still_serves(server)


def test_requests_sent_ahead_are_answered_in_order(server):
    with connect(server) as s:
        s.sendall(b"\r\n" + request() + b"\r\n" + request(
            method="GET", body=b"", path="/v1/models", length=False) +
            request(b"{}"))
        data = b""
        s.settimeout(30)
        while data.count(b"HTTP/1.1 ") < 3:
            part = s.recv(65536)
            assert part, data
            data += part
        codes = [part[:3] for part in data.split(b"HTTP/1.1 ")[1:]]
        assert codes == [b"200", b"200", b"400"]


def test_half_open_connections_and_streams(server):
    """A client that has shut its side is gone: its turn ends."""
    body = json.dumps({"messages": [{"role": "user", "content": "go on"}],
                       "max_tokens": 3000, "stream": True,
                       "ignore_eos": True}).encode()
    before = server.metrics().requests()["ChatCompletions", "CANCELLED"]
    sockets = []
    for _ in range(8):
        s = connect(server)
        s.sendall(request(body))
        s.recv(100)
        s.shutdown(socket.SHUT_WR)
        sockets.append(s)
    wait_until(lambda: server.metrics().requests()
               ["ChatCompletions", "CANCELLED"] == before + 8)
    for s in sockets:
        s.close()
    # And one that says nothing at all.
    with connect(server):
        still_serves(server)
    wait_until(lambda: server.metrics().sum("xcache_requests_running") == 0)


def test_http_1_0(server):
    """Without chunks: the end of the connection is the end of the stream."""
    body = GOOD[:-1] + b', "stream": true}'
    with connect(server) as s:
        s.sendall(request(body).replace(b"HTTP/1.1", b"HTTP/1.0"))
        data = b""
        while part := s.recv(65536):
            data += part
    head, text = data.split(b"\r\n\r\n", 1)
    assert b"chunked" not in head and b"Connection: close" in head
    assert text.endswith(b"data: [DONE]\n\n")


def test_connections_from_one_peer_are_bounded(tiny_model, tmp_path):
    with harness.Server(tiny_model, tmp_path, "--http-listen", "127.0.0.1:0",
                        "--max-connections", "8",
                        "--max-connections-per-peer", "4") as server:
        open_ones = [connect(server) for _ in range(4)]
        wait_until(lambda: server.metrics().sum("xcache_connections") == 4)
        # The reset may come as early as the connection.
        with contextlib.suppress(ConnectionResetError), connect(server) as s:
            assert s.recv(1) == b""
        assert server.metrics().sum("xcache_connections_refused_total",
                                    reason="peer") >= 1
        for s in open_ones:
            s.close()
        wait_until(lambda: server.metrics().sum("xcache_connections") == 0)
        still_serves(server)
        # gRPC has a count of its own.
        server.client().chat(messages="hi", params=params(max_tokens=1))

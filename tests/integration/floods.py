"""What peers do that mean no good, each as a function that goes on until a
deadline; and a program, so that a flood takes no time of the process that
measures what it does to others. No tests here.

    python floods.py NAME ADDRESS METRICS_ADDRESS SECONDS TOKEN

Who has no token floods with less than calls; the others have TOKEN, or none
where it is empty.
"""

import contextlib
import socket
import sys
import threading
import time

import grpc
from xcache.v1 import common_pb2
from xcache.v1 import inference_pb2 as pb
from xcache.v1 import inference_pb2_grpc
from xcache.v1 import sessions_pb2 as spb
from xcache.v1 import sessions_pb2_grpc

import raw_http2

CHAT = "/xcache.v1.Inference/Chat"
MIB = 1 << 20


def channel(address):
    return grpc.insecure_channel(address, [
        ("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)])


def bearer(token):
    return [("authorization", f"Bearer {token}")] if token else None


def split(address):
    host, port = address.rsplit(":", 1)
    return host, int(port)


def leave_unfinished(address, connections, streams, size, token=None,
                     seconds=20):
    """Messages of `size` bytes, of which the last byte never comes. Returns
    when the server takes no more of them."""
    body = raw_http2.message_prefix(size) + bytes(size - 1)
    made = []
    for _ in range(connections):
        connection = connected(address)
        left = {connection.open(raw_http2.call_headers(CHAT, token)): 0
                for _ in range(streams)}
        made.append((connection, left))
    deadline = time.monotonic() + seconds
    idle_since = time.monotonic()
    while time.monotonic() < deadline and time.monotonic() - idle_since < 1:
        for connection, left in made:
            if connection.closed:
                continue
            connection.read(0.001)
            for stream in list(left):
                try:
                    sent = connection.send_data(
                        stream, body[left[stream]:left[stream] + 16384])
                except OSError:
                    connection.closed = True
                    break
                left[stream] += sent
                if sent:
                    idle_since = time.monotonic()
    return [connection for connection, _ in made]


def open_and_reset(peer, count):
    """So many streams of a connection, each reset at once."""
    frames = []
    for _ in range(count):
        stream = peer.next_stream
        peer.next_stream += 2
        frames.append(raw_http2.frame(
            raw_http2.HEADERS, raw_http2.END_HEADERS, stream,
            raw_http2.call_headers(CHAT)))
        frames.append(raw_http2.frame(
            raw_http2.RST_STREAM, 0, stream, (8).to_bytes(4, "big")))
    peer.send(*frames)


def connected(address):
    """A connection, also where the server refuses some for a while."""
    while True:
        try:
            return raw_http2.Connection(address)
        except ConnectionError:
            time.sleep(0.01)


def reset_streams(address, most=1000):
    """On one connection, until that is closed; returns how many were sent."""
    sent = 0
    with (contextlib.suppress(OSError),
          contextlib.closing(connected(address)) as peer):
        while sent < most:
            open_and_reset(peer, 50)
            sent += 50
            peer.read(0.0001)
    return sent


def reset_on_many(address, connections, streams):
    """So many streams on each of many connections, which stay open; returns
    these."""
    peers = [connected(address) for _ in range(connections)]
    for _ in range(0, streams, 50):
        for peer in peers:
            with contextlib.suppress(OSError):
                open_and_reset(peer, 50)
    return peers


def unfinished(address, _, deadline, __):
    while (left := deadline - time.monotonic()) > 0:
        with contextlib.suppress(OSError):
            for peer in leave_unfinished(address, 6, 20, 6 * MIB,
                                         seconds=left):
                peer.close()


def resets(address, _, deadline, __):
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            reset_streams(address)


def few_resets_each(address, _, deadline, __):
    """On connections of which none has many."""
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            for peer in reset_on_many(address, 50, 500):
                peer.close()


def idle(address, metrics, deadline, _):
    """Connections to both ports that say nothing, or half a request."""
    peers = []
    while time.monotonic() < deadline:
        for port in (address, address, address, metrics):
            with contextlib.suppress(OSError):
                peers.append(socket.create_connection(split(port), 1))
                if port is metrics:
                    peers[-1].sendall(b"GET /metrics HTTP/1.1\r\nHost: ")
        if len(peers) > 900:
            for peer in peers:
                peer.close()
            peers = []
        time.sleep(0.002)


def call_again_and_again(calls, deadline):
    """Starts each call anew when it has ended, however it ends."""
    running = [call() for call in calls]
    while time.monotonic() < deadline:
        for i, call in enumerate(calls):
            if running[i].done():
                running[i] = call()
        time.sleep(0.01)
    for call in running:
        call.cancel()


def long_texts(address, _, deadline, token):
    """16 chats of 12 MiB, all too long, and 8 texts to tokenize."""
    channels = [channel(address) for _ in range(24)]
    word = "word " * (12 * MIB // 5 // 4)
    message = common_pb2.Message(role=common_pb2.ROLE_USER, content=word)
    chat = pb.ChatRequest(messages=[message] * 4)
    text = pb.TokenizeRequest(text="word " * (4 * MIB // 5))
    call_again_and_again(
        [lambda s=inference_pb2_grpc.InferenceStub(c): s.Chat(
            chat, metadata=bearer(token)) for c in channels[:16]] +
        [lambda s=inference_pb2_grpc.InferenceStub(c): s.Tokenize.future(
            text, metadata=bearer(token)) for c in channels[16:]], deadline)


def bombs(address, _, deadline, token):
    """A megabyte that inflates to 200."""
    stub = inference_pb2_grpc.InferenceStub(channel(address))
    bomb = pb.TokenizeRequest(text="a" * (200 * MIB))
    while time.monotonic() < deadline:
        with contextlib.suppress(grpc.RpcError):
            stub.Tokenize(bomb, metadata=bearer(token),
                          compression=grpc.Compression.Gzip)


def codecs(address, _, deadline, token):
    """Sessions of ever other codecs."""
    stub = sessions_pb2_grpc.SessionsStub(channel(address))
    specs = [f"xquant-gqa:bits={bits},group={group},clip={clip}"
             for bits in (2, 3, 4, 8) for group in (16, 32, 64)
             for clip in ("mse", "minmax")]
    number = 0
    while time.monotonic() < deadline:
        name = f"codec-{number}"
        with contextlib.suppress(grpc.RpcError):
            stub.CreateSession(spb.CreateSessionRequest(
                id=name, codec=specs[number % len(specs)]), timeout=60,
                metadata=bearer(token))
            stub.DeleteSession(spb.DeleteSessionRequest(id=name), timeout=60,
                               metadata=bearer(token))
        number += 1


def answers_of(address, deadline, token, request):
    """64 of `request(number)` under way at any time."""
    params = pb.GenerationParams(max_tokens=400, ignore_eos=True)
    stubs = [inference_pb2_grpc.InferenceStub(channel(address))
             for _ in range(8)]
    running = []
    number = 0
    while time.monotonic() < deadline:
        running = [call for call in running if not call.done()]
        while len(running) < 64:
            running.append(Reading(stubs[number % 8].Generate(
                pb.GenerateRequest(params=params, **request(number)),
                metadata=bearer(token))))
            number += 1
        time.sleep(0.02)
    for call in running:
        call.cancel()


class Reading(threading.Thread):
    """Reads an answer to its end."""

    def __init__(self, call):
        super().__init__(daemon=True)
        self.call = call
        self.cancel = call.cancel
        self.start()

    def run(self):
        with contextlib.suppress(grpc.RpcError):
            for _ in self.call:
                pass

    def done(self):
        return not self.is_alive()


def prompts(address, _, deadline, token):
    """Prompts of 1,500 tokens, each another one."""
    answers_of(address, deadline, token, lambda number: {
        "token_ids": pb.TokenIds(ids=[100 + number % 900, 100 + number // 900] +
                                 [200 + i % 50 for i in range(1498)])})


def long_prompts(address, _, deadline, token):
    """Prompts of 6,000 tokens, of which a row takes more than a step of a short
    answer does."""
    answers_of(address, deadline, token, lambda number: {
        "token_ids": pb.TokenIds(ids=[100 + number % 900, 100 + number // 900] +
                                 [200 + i % 50 for i in range(5998)])})


def answers(address, _, deadline, token):
    """Short prompts, long answers."""
    answers_of(address, deadline, token,
               lambda number: {"text": f"Tell me {number} tales."})


def histories(address, _, deadline, token):
    """12 prompts of 1,000 tokens, again and again: once they were computed they
    are restored, for they are more than memory holds."""
    stub = inference_pb2_grpc.InferenceStub(channel(address))

    def call(number):
        return stub.Generate(pb.GenerateRequest(
            token_ids=pb.TokenIds(ids=[100 + number % 12] +
                                  [300 + i % 50 for i in range(999)]),
            params=pb.GenerationParams(max_tokens=1)), metadata=bearer(token))

    running = []
    number = 0
    while time.monotonic() < deadline:
        running = [c for c in running if not c.done()]
        while len(running) < 12:
            running.append(Reading(call(number)))
            number += 1
        time.sleep(0.005)
    for c in running:
        c.cancel()


FLOODS = {f.__name__: f for f in (unfinished, resets, few_resets_each, idle,
                                  long_texts, bombs, codecs)}
# Of well-formed requests, as many as go: what other tenants share with.
TENANT_FLOODS = {f.__name__: f for f in (prompts, long_prompts, answers,
                                         histories)}

if __name__ == "__main__":
    NAME, ADDRESS, METRICS, SECONDS, TOKEN = sys.argv[1:]
    (FLOODS | TENANT_FLOODS)[NAME](ADDRESS, METRICS, time.monotonic() + float(SECONDS), TOKEN)

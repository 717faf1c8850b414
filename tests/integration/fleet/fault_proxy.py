"""What can go wrong between a server and its object store: a proxy for HTTP that
is told to do it. It writes down what went through. No tests here."""

import asyncio
import contextlib
import dataclasses
import random
import re
import socket
import threading
import time

import h11


@dataclasses.dataclass(frozen=True)
class Fault:
    """What happens to a share of the requests; nothing, as it is."""
    share: float = 1.0
    # Seconds until a request goes on.
    delay: float = 0
    # It does not reach the store: an answer with this status and error code.
    status: int = 0
    code: str = ""
    # "reset", "end": the connection ends so in the midst of an answer's body, or
    # instead of an answer without one; every second time of an upload instead,
    # which then does not reach the store.
    cut: str = ""
    # One bit of what is downloaded or uploaded is another one.
    flip: bool = False
    # Nothing is ever answered on connections that sent something meanwhile.
    silent: bool = False
    # Nobody listens, and open connections are reset.
    refused: bool = False


@dataclasses.dataclass
class Exchange:
    """One request that was answered by the store."""
    method: str
    target: str
    status: int
    uploaded: int    # bytes of the bodies
    downloaded: int
    seconds: float


class _Closed(Exception):
    """By the other side."""


class _Peer:
    """One side's connection, in whole messages."""

    def __init__(self, role, reader, writer):
        self.http = h11.Connection(role)
        self.reader = reader
        self.writer = writer

    async def receive(self):
        """The head and the body of the next message."""
        head, body = None, []
        while True:
            event = self.http.next_event()
            if event is h11.NEED_DATA:
                if self.http.they_are_waiting_for_100_continue:
                    self.writer.write(self.http.send(
                        h11.InformationalResponse(status_code=100,
                                                  headers=[])))
                self.http.receive_data(await self.reader.read(1 << 16))
            elif isinstance(event, (h11.Request, h11.Response)):
                head = event
            elif isinstance(event, h11.Data):
                body.append(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                return head, b"".join(body)
            elif isinstance(event, h11.ConnectionClosed):
                raise _Closed

    def send(self, head, body):
        self.writer.write(self.http.send(head))
        if body:
            self.writer.write(self.http.send(h11.Data(data=body)))
        self.writer.write(self.http.send(h11.EndOfMessage()))

    def next_message(self):
        """Whether the connection takes one."""
        if (self.http.our_state is h11.DONE and
                self.http.their_state is h11.DONE):
            self.http.start_next_cycle()
            return True
        return False


def _flipped(body):
    out = bytearray(body)
    out[random.randrange(len(out))] ^= 1 << random.randrange(8)
    return bytes(out)


class FaultProxy:
    """Listens at `url` and forwards to the store's port. Use as a context
    manager."""

    def __init__(self, store_port):
        self.store_port = store_port
        self.fault = Fault()
        self.exchanges = []  # appended to alone
        self.faults = 0      # requests that something was done to
        self._connections = set()
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            self.port = one.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._server = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._call(self._listen())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._call(self._end_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @contextlib.contextmanager
    def injected(self, fault):
        self.inject(fault)
        try:
            yield
        finally:
            self.inject(Fault())

    def inject(self, fault):
        was_refused = self.fault.refused
        self.fault = fault
        if fault.refused and not was_refused:
            self._call(self._refuse())
        elif was_refused and not fault.refused:
            self._call(self._listen())

    def downloaded(self, pattern, since=0):
        """Bytes of the answers to GETs of such objects; since that many
        exchanges."""
        return sum(e.downloaded for e in self.exchanges[since:]
                   if e.method == "GET" and e.status == 200 and
                   re.search(pattern, e.target))

    def _call(self, coroutine):
        return asyncio.run_coroutine_threadsafe(
            coroutine, self._loop).result(30)

    async def _listen(self):
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", self.port)

    async def _refuse(self):
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._connections):
            self._reset(writer)

    async def _end_all(self):
        await self._refuse()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @staticmethod
    def _reset(writer):
        """Not a FIN but a RST, and what waits to be sent is lost."""
        raw = writer.get_extra_info("socket")
        if raw is not None and raw.fileno() >= 0:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER,
                           b"\x01\x00\x00\x00\x00\x00\x00\x00")
        writer.transport.abort()

    async def _serve(self, reader, writer):
        client = _Peer(h11.SERVER, reader, writer)
        store = None
        self._connections.add(writer)
        try:
            while True:
                head, body = await client.receive()
                if store is None:
                    store = _Peer(h11.CLIENT, *await asyncio.open_connection(
                        "127.0.0.1", self.store_port))
                if not await self._exchange(client, store, head, body):
                    return
                await writer.drain()
                if not store.next_message():
                    store.writer.close()
                    store = None
                if not client.next_message():
                    return
        except (_Closed, OSError, h11.ProtocolError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(writer)
            writer.close()
            if store is not None:
                store.writer.close()

    async def _exchange(self, client, store, head, body):
        """One request and its answer. False: the connection is through."""
        start = time.monotonic()
        fault = self.fault
        if random.random() >= fault.share:
            fault = Fault()
        if fault != Fault():
            self.faults += 1
        if fault.silent:
            while await client.reader.read(1 << 16):
                pass
            return False
        await asyncio.sleep(fault.delay)
        if fault.status:
            text = (f"<Error><Code>{fault.code}</Code><Message>by the test"
                    f"</Message></Error>").encode()
            client.send(h11.Response(status_code=fault.status, headers=[
                ("content-type", "application/xml"),
                ("content-length", str(len(text)))]),
                b"" if head.method == b"HEAD" else text)
            return True
        if fault.cut and body and random.random() < 0.5:
            self._end(client, fault.cut)
            return False
        if fault.flip and body:
            body = _flipped(body)
        store.send(head, body)
        await store.writer.drain()
        answer, text = await store.receive()
        if fault.flip and text and answer.status_code == 200:
            text = _flipped(text)
        headers = [(name, value) for name, value in answer.headers
                   if name not in (b"transfer-encoding", b"content-length")]
        # 204 and 304 have no body, and none that is announced.
        if answer.status_code not in (204, 304):
            length = str(len(text)).encode()
            if head.method == b"HEAD":
                length = dict(answer.headers).get(b"content-length", b"0")
            headers.append((b"content-length", length))
        answer = h11.Response(status_code=answer.status_code, headers=headers,
                              reason=answer.reason)
        if fault.cut:
            if text:
                client.writer.write(client.http.send(answer))
                client.writer.write(
                    client.http.send(h11.Data(data=text[:len(text) // 2])))
                await client.writer.drain()
            self._end(client, fault.cut)
            return False
        client.send(answer, text)
        self.exchanges.append(Exchange(
            head.method.decode(), head.target.decode(), answer.status_code,
            len(body), len(text), time.monotonic() - start))
        return True

    def _end(self, client, how):
        if how == "reset":
            self._reset(client.writer)
        else:
            client.writer.close()

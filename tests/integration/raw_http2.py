"""HTTP/2 as a peer speaks it that means no good: frames by hand. No tests
here."""

import socket
import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE = 0, 1, 3, 4, 6, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4


def frame(kind, flags, stream, payload=b""):
    return (struct.pack(">I", len(payload))[1:] +
            struct.pack(">BBI", kind, flags, stream) + payload)


def literal(name, value):
    """A header field, not indexed, not Huffman-coded."""
    def text(raw):
        assert len(raw) < 127
        return bytes([len(raw)]) + raw
    return b"\x00" + text(name) + text(value)


def call_headers(path, token=None, **more):
    fields = [(b":method", b"POST"), (b":scheme", b"http"),
              (b":path", path.encode()), (b":authority", b"localhost"),
              (b"content-type", b"application/grpc"), (b"te", b"trailers")]
    if token is not None:
        fields.append((b"authorization", b"Bearer " + token.encode()))
    fields += [(k.replace("_", "-").encode(), v.encode())
               for k, v in more.items()]
    return b"".join(literal(name, value) for name, value in fields)


def message_prefix(size, compressed=False):
    return bytes([compressed]) + struct.pack(">I", size)


class Connection:
    """One connection. What is sent keeps to the windows that the server gives,
    as a peer must that wants to stay connected."""

    def __init__(self, address, timeout=10):
        host, port = address.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout)
        self.socket.sendall(PREFACE + frame(SETTINGS, 0, 0))
        self.next_stream = 1
        self.initial_window = 65535
        self.window = 65535  # of the connection
        self.windows = {}  # of streams; those that were reset are gone
        self.received = b""
        self.closed = False

    def open(self, headers, flags=END_HEADERS):
        stream = self.next_stream
        self.next_stream += 2
        self.windows[stream] = self.initial_window
        self.socket.sendall(frame(HEADERS, flags, stream, headers))
        return stream

    def send(self, *frames):
        self.socket.sendall(b"".join(frames))

    def send_data(self, stream, data):
        """As much of `data` as fits now; returns how much that was."""
        size = min(len(data), self.window, self.windows.get(stream, 0), 16384)
        if size > 0:
            self.send(frame(DATA, 0, stream, data[:size]))
            self.window -= size
            self.windows[stream] -= size
        return max(size, 0)

    def read(self, seconds):
        """Takes in what the server sends within this time."""
        self.socket.settimeout(seconds)
        try:
            data = self.socket.recv(1 << 16)
            self.closed = self.closed or not data
            self.received += data
        except (TimeoutError, BlockingIOError):
            pass
        except OSError:
            self.closed = True
        while len(self.received) >= 9:
            size = int.from_bytes(self.received[:3], "big")
            if len(self.received) < 9 + size:
                break
            kind, flags, stream = struct.unpack(">BBI", self.received[3:9])
            self._take(kind, flags, stream, self.received[9:9 + size])
            self.received = self.received[9 + size:]

    def _take(self, kind, flags, stream, payload):
        if kind == SETTINGS and not flags & ACK:
            for at in range(0, len(payload), 6):
                name, value = struct.unpack(">HI", payload[at:at + 6])
                if name == 4:
                    for s in self.windows:
                        self.windows[s] += value - self.initial_window
                    self.initial_window = value
            self.send(frame(SETTINGS, ACK, 0))
        elif kind == PING and not flags & ACK:
            self.send(frame(PING, ACK, 0, payload))
        elif kind == WINDOW_UPDATE:
            (more,) = struct.unpack(">I", payload)
            if stream == 0:
                self.window += more
            elif stream in self.windows:
                self.windows[stream] += more
        elif kind == RST_STREAM or (kind == HEADERS and flags & END_STREAM):
            self.windows.pop(stream, None)

    def close(self):
        self.socket.close()

"""Changes single fields of a GGUF file, so that a test can break exactly one.
Knows the format's layout and nothing else. No tests here."""

import struct

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9


class Gguf:

    def __init__(self, path):
        self.data = bytearray(path.read_bytes())
        self.values = {}   # key -> (type, offset of the value)
        self.tensors = {}  # name -> offset of its type
        self.at = 0
        assert self._take("<4s") == b"GGUF"
        self._take("<I")
        num_tensors, num_values = self._take("<Q"), self._take("<Q")
        for _ in range(num_values):
            key = self._string()
            kind = self._take("<I")
            self.values[key] = (kind, self.at)
            self._skip(kind)
        for _ in range(num_tensors):
            name = self._string()
            dims = self._take("<I")
            self.at += 8 * dims
            self.tensors[name] = self.at
            self.at += 4 + 8

    def set_tensor_type(self, name, number):
        struct.pack_into("<I", self.data, self.tensors[name], number)

    def set_string(self, key, text):
        """Of the same length."""
        kind, at = self.values[key]
        assert kind == _STRING
        length, = struct.unpack_from("<Q", self.data, at)
        assert length == len(text)
        self.data[at + 8:at + 8 + length] = text

    def string(self, key):
        _, at = self.values[key]
        length, = struct.unpack_from("<Q", self.data, at)
        return bytes(self.data[at + 8:at + 8 + length])

    def set_u32(self, key, number):
        kind, at = self.values[key]
        assert _SIZES[kind] == 4
        struct.pack_into("<I", self.data, at, number)

    def rename_key(self, key, name):
        assert len(key) == len(name)
        start = self.values[key][1] - 4 - len(key)
        self.data[start:start + len(key)] = name.encode()

    def _take(self, form):
        value, = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return value

    def _string(self):
        length = self._take("<Q")
        self.at += length
        return self.data[self.at - length:self.at].decode()

    def _skip(self, kind):
        if kind == _STRING:
            self._string()
        elif kind == _ARRAY:
            inner, count = self._take("<I"), self._take("<Q")
            if inner == _STRING:
                for _ in range(count):
                    self._string()
            else:
                self.at += _SIZES[inner] * count
        else:
            self.at += _SIZES[kind]

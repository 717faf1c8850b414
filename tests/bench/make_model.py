#!/usr/bin/env python3
"""Writes a GGUF of a llama shape with random weights, for measuring speed alone.

Tokenizer and settings are those of another llama file; types are those that
llama-quantize gives. The 1B shape (16 layers of 2,048, 8,192 inside, 32 query
and 8 K/V heads of 64) has 1.07 billion weights with the demo's 49,152 tokens.

  tests/bench/make_model.py --like DEMO.gguf --type Q4_K_M OUT.gguf
"""
import argparse
import os
import random
import struct

# What the fields of a GGUF's metadata take (ggml's docs/gguf.md).
FIXED = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
STRING, ARRAY, UINT32 = 8, 9, 4
ALIGNMENT = 32

# type: number, weights and bytes of a block, and where FP16 scales stand in it:
# (offset, value) for weights of about 1 / 50.
BLOCKS = {
    "F32": (0, 1, 4, []),
    "Q4_0": (2, 32, 18, [(0, 0.004)]),
    "Q8_0": (8, 32, 34, [(0, 0.0003)]),
    "Q4_K": (12, 256, 144, [(0, 0.00014), (2, 0.00105)]),
    "Q5_K": (13, 256, 176, [(0, 0.00007), (2, 0.00105)]),
    "Q6_K": (14, 256, 210, [(208, 0.000015)]),
    "Q2_K": (10, 256, 84, [(80, 0.001), (82, 0.0015)]),
    "Q3_K": (11, 256, 110, [(108, 0.0005)]),
    "IQ4_NL": (20, 32, 18, [(0, 0.0003)]),
    "IQ4_XS": (23, 256, 136, [(0, 0.000015)]),
}


def read_metadata(path):
    """Key to (type, bytes as they stand in the file)."""
    with open(path, "rb") as f:
        data = f.read(64 << 20)
    at = 24

    def string():
        nonlocal at
        n, = struct.unpack_from("<Q", data, at)
        at += 8 + n
        return data[at - n:at]

    def skip(kind):
        nonlocal at
        if kind == STRING:
            string()
        elif kind == ARRAY:
            of, n = struct.unpack_from("<IQ", data, at)
            at += 12
            for _ in range(n):
                skip(of)
        else:
            at += FIXED[kind]

    fields = {}
    for _ in range(struct.unpack_from("<Q", data, 16)[0]):
        key = string().decode()
        kind, = struct.unpack_from("<I", data, at)
        at += 4
        begin = at
        skip(kind)
        fields[key] = (kind, data[begin:at])
    return fields


def blocks_of(kind, num_weights):
    """Random blocks, a piece of them again and again: speed does not mind."""
    number, weights, size, scales = BLOCKS[kind]
    count = num_weights // weights
    if kind == "F32":  # a norm
        return number, struct.pack("<f", 1.0) * count
    piece = bytearray(random.randbytes(min(count, 8192) * size))
    for offset, value in scales:
        half = struct.pack("<e", value)
        for i in range(2):
            piece[offset + i::size] = half[i:i + 1] * (len(piece) // size)
    whole, rest = divmod(count * size, len(piece))
    return number, bytes(piece) * whole + bytes(piece[:rest])


def types_of(name, layers):
    """Of a tensor, by its name and layer: as llama-quantize mixes them."""
    if not name.endswith("_M"):
        return lambda tensor, i: name
    base = name[:-2]

    def choose(tensor, i):
        more = (i < layers // 8 or i >= 7 * layers // 8 or
                (i - layers // 8) % 3 == 2)
        if tensor == "token_embd" or (tensor in ("attn_v", "ffn_down") and
                                      more):
            return "Q6_K"
        return base
    return choose


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("out")
    p.add_argument("--like", required=True, help="a GGUF of architecture llama")
    p.add_argument("--type", default="Q4_K_M", choices=[
        "Q4_0", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL",
        "IQ4_XS", "Q4_K_M", "Q5_K_M"])
    p.add_argument("--layers", type=int, default=16)
    p.add_argument("--width", type=int, default=2048)
    p.add_argument("--inner", type=int, default=8192)
    p.add_argument("--heads", type=int, default=32)
    p.add_argument("--kv-heads", type=int, default=8)
    a = p.parse_args()
    random.seed(1)
    fields = read_metadata(a.like)
    vocab, = struct.unpack_from("<Q", fields["tokenizer.ggml.tokens"][1], 4)
    head = a.width // a.heads
    for key, value in {
            "block_count": a.layers, "embedding_length": a.width,
            "feed_forward_length": a.inner, "context_length": 131072,
            "attention.head_count": a.heads,
            "attention.head_count_kv": a.kv_heads,
            "rope.dimension_count": head, "vocab_size": vocab}.items():
        fields["llama." + key] = (UINT32, struct.pack("<I", value))
    choose = types_of(a.type, a.layers)
    tensors = [("token_embd", 0, a.width, vocab),
               ("output_norm", None, a.width, 1)]
    for i in range(a.layers):
        kv = a.kv_heads * head
        tensors += [(f"blk.{i}.{name}", i, cols, rows)
                    for name, cols, rows in [
                        ("attn_norm", a.width, 1), ("ffn_norm", a.width, 1),
                        ("attn_q", a.width, a.width), ("attn_k", a.width, kv),
                        ("attn_v", a.width, kv),
                        ("attn_output", a.width, a.width),
                        ("ffn_gate", a.width, a.inner),
                        ("ffn_up", a.width, a.inner),
                        ("ffn_down", a.inner, a.width)]]

    def text(s):
        return struct.pack("<Q", len(s)) + s.encode()

    infos, data, offset = b"", [], 0
    for name, layer, cols, rows in tensors:
        kind = ("F32" if rows == 1 else
                choose(name.rsplit(".", maxsplit=1)[-1], layer))
        number, weights = blocks_of(kind, cols * rows)
        dims = [cols] if rows == 1 else [cols, rows]
        infos += text(name + ".weight") + struct.pack(
            f"<I{len(dims)}QIQ", len(dims), *dims, number, offset)
        weights += bytes(-len(weights) % ALIGNMENT)
        data.append(weights)
        offset += len(weights)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(fields))
    for key, (kind, value) in fields.items():
        head += text(key) + struct.pack("<I", kind) + value
    head += infos
    with open(a.out, "wb") as f:
        f.write(head + bytes(-len(head) % ALIGNMENT))
        for weights in data:
            f.write(weights)
    print(f"{a.out}: {os.path.getsize(a.out) / 1e6:.0f} MB")


if __name__ == "__main__":
    main()

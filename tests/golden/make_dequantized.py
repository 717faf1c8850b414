#!/usr/bin/env python3
"""Writes blocks.txt: random blocks of every tensor type and their elements as
the gguf package dequantizes them: the golden data of DequantizeRow.

    pip install gguf numpy
    make_dequantized.py > blocks.txt

A line for each row: the type, its bytes in hexadecimal, its elements' bits
(IEEE 754 single precision) in hexadecimal."""
import numpy as np
import gguf
from gguf.quants import dequantize

TYPES = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K",
         "Q2_K", "Q3_K", "IQ4_NL", "IQ4_XS"]
# Where a type's halves (scales, minima) lie in its block.
HALVES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
          "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
          "Q2_K": [80, 82], "Q3_K": [108], "IQ4_NL": [0], "IQ4_XS": [0]}


def main():
    rng = np.random.default_rng(7)
    for name in TYPES:
        qtype = gguf.GGMLQuantizationType[name]
        elements, size = gguf.GGML_QUANT_SIZES[qtype]
        rows = 4 if elements > 1 else 2
        for row in range(rows):
            blocks = 2 if 1 < elements < 256 else 1 if elements > 1 else 16
            data = rng.integers(0, 256, blocks * size, dtype=np.uint8)
            for b in range(blocks):
                for at in HALVES.get(name, []):
                    # Normal, negative, subnormal and zero scales.
                    value = [rng.normal(0, 0.02), -abs(rng.normal(0, 3)), 3e-6, 0.0][row]
                    data[b * size + at:b * size + at + 2] = np.frombuffer(np.float16(value).tobytes(), np.uint8)
            if elements == 1:
                values = np.concatenate([rng.normal(0, 1, 10), [0.0, -0.0, 1.0, 6e-8, 1e-40, -65504.0]]).astype(np.float32)
                if name == "F32":
                    data = values.view(np.uint8)
                elif name == "F16":
                    data = values.astype(np.float16).view(np.uint8)
                else:
                    data = (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
            out = dequantize(data.reshape(1, -1) if elements > 1 else data.view(
                {"F32": np.float32, "F16": np.float16}.get(name, np.uint8)).reshape(1, -1), qtype)
            print(name, data.tobytes().hex(), np.ascontiguousarray(out, dtype=np.float32).astype("<f4").view("<u4").astype(">u4").tobytes().hex())


if __name__ == "__main__":
    main()

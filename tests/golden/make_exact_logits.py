#!/usr/bin/env python3
"""Writes logits_smollm2_exact.txt: what make_logits.py writes, computed in
double precision from the dequantized weights. Slow, short, and with nothing
rounded but the weights.

    pip install gguf numpy
    make_exact_logits.py SmolLM2-135M-Instruct.Q4_1.gguf > logits_smollm2_exact.txt

Takes its tokens from logits_smollm2.txt."""
import hashlib
import os
import sys

import gguf
import numpy as np
from gguf.quants import dequantize


def main():
    path = sys.argv[1]
    here = os.path.dirname(os.path.abspath(__file__))
    with open(path, "rb") as f:
        print(hashlib.sha256(f.read()).hexdigest())
    with open(os.path.join(here, "logits_smollm2.txt"), encoding="ascii") as f:
        tokens = [int(line.split()[0]) for line in f.read().split("\n")[1:-1]]

    reader = gguf.GGUFReader(path)
    tensors = {t.name: t for t in reader.tensors}
    weight = lambda name: dequantize(tensors[name].data, tensors[name].tensor_type).astype(np.float64)
    key = lambda name: reader.fields["llama." + name].contents()
    heads, kv_heads = key("attention.head_count"), key("attention.head_count_kv")
    eps = key("attention.layer_norm_rms_epsilon")
    n, d = len(tokens), key("embedding_length")
    dim = d // heads

    def norm(x, gain):
        return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * gain

    angle = np.arange(n)[:, None] * key("rope.freq_base") ** (-np.arange(0, dim, 2) / dim)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]

    def rope(x):
        a, b = x[..., 0::2], x[..., 1::2]
        out = np.empty_like(x)
        out[..., 0::2], out[..., 1::2] = a * cos - b * sin, a * sin + b * cos
        return out

    embedding = weight("token_embd.weight")
    x = embedding[tokens]
    future = np.triu(np.full((n, n), -np.inf), 1)
    for i in range(key("block_count")):
        w = lambda name: weight(f"blk.{i}.{name}.weight")
        h = norm(x, w("attn_norm"))
        q = rope((h @ w("attn_q").T).reshape(n, heads, dim))
        k = rope((h @ w("attn_k").T).reshape(n, kv_heads, dim))
        v = (h @ w("attn_v").T).reshape(n, kv_heads, dim)
        out = np.empty_like(q)
        for head in range(heads):
            kv = head * kv_heads // heads
            scores = q[:, head] @ k[:, kv].T / np.sqrt(dim) + future
            scores = np.exp(scores - scores.max(axis=1, keepdims=True))
            out[:, head] = scores / scores.sum(axis=1, keepdims=True) @ v[:, kv]
        x = x + out.reshape(n, d) @ w("attn_output").T
        h = norm(x, w("ffn_norm"))
        gate = h @ w("ffn_gate").T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w("ffn_up").T)) @ w("ffn_down").T
    logits = norm(x, weight("output_norm.weight")) @ embedding.T
    logits -= logits.max(axis=1, keepdims=True)
    logp = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    for token, row in zip(tokens, logp):
        top = np.argsort(-row, kind="stable")[:20]
        print(token, " ".join(f"{i}:{row[i]:.3f}" for i in top))


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Prefill of the benchmark's shapes in PyTorch: BF16, random weights, fused
attention and cuBLAS. What recomputing a conversation costs elsewhere, to be
compared with ours in the same run. One JSON object a line.
  gpu_torch.py TOKENS..."""
import json
import sys
import time

import torch

SHAPES = {
    # layers, d, heads, kv heads, head_dim, d_ff, vocabulary
    "llama-3.1-8b": (32, 4096, 32, 8, 128, 14336, 128256),
    "llama-2-7b": (32, 4096, 32, 32, 128, 11008, 32000),
}
CHUNK = 8192  # tokens a forward pass; the products are as large as they need be


def matrix(rows, cols):
    w = torch.empty(rows, cols, dtype=torch.bfloat16, device="cuda")
    return w.normal_(0, cols ** -0.5)


def rope(x, positions):
    half = x.shape[-1] // 2
    inverse = 10000.0 ** (-torch.arange(half, device="cuda") / half)
    angle = positions[:, None] * inverse
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def norm(x):
    return torch.nn.functional.rms_norm(x, (x.shape[-1],))


def prefill(weights, shape, n):
    layers, d, heads, kv_heads, head_dim, _, _ = shape
    caches = [[torch.empty(kv_heads, n, head_dim, dtype=torch.bfloat16,
                           device="cuda") for _ in range(2)]
              for _ in range(layers)]
    for begin in range(0, n, CHUNK):
        end = min(begin + CHUNK, n)
        x = torch.randn(end - begin, d, dtype=torch.bfloat16, device="cuda")
        positions = torch.arange(begin, end, device="cuda").float()
        for (qkv, out, gate_up, down), (ks, vs) in zip(weights, caches):
            q, k, v = (norm(x) @ qkv.T).split(
                (heads * head_dim, kv_heads * head_dim, kv_heads * head_dim), -1)
            q = rope(q.view(-1, heads, head_dim).transpose(0, 1), positions)
            ks[:, begin:end] = rope(
                k.view(-1, kv_heads, head_dim).transpose(0, 1), positions)
            vs[:, begin:end] = v.view(-1, kv_heads, head_dim).transpose(0, 1)
            if begin == 0:
                y = torch.nn.functional.scaled_dot_product_attention(
                    q[None], ks[None, :, :end], vs[None, :, :end],
                    is_causal=True, enable_gqa=True)[0]
            else:
                from torch.nn.attention.bias import causal_lower_right
                y = torch.nn.functional.scaled_dot_product_attention(
                    q[None], ks[None, :, :end].repeat_interleave(
                        heads // kv_heads, 1),
                    vs[None, :, :end].repeat_interleave(heads // kv_heads, 1),
                    attn_mask=causal_lower_right(end - begin, end))[0]
            x = x + y.transpose(0, 1).reshape(-1, heads * head_dim) @ out.T
            gate, up = (norm(x) @ gate_up.T).chunk(2, -1)
            x = x + (torch.nn.functional.silu(gate) * up) @ down.T


def main():
    for name, shape in SHAPES.items():
        layers, d, heads, kv_heads, head_dim, d_ff, _ = shape
        width = (heads + 2 * kv_heads) * head_dim
        weights = [(matrix(width, d), matrix(d, heads * head_dim),
                    matrix(2 * d_ff, d), matrix(d, d_ff))
                   for _ in range(layers)]
        with torch.inference_mode():
            for n in map(int, sys.argv[1:]):
                prefill(weights, shape, min(n, CHUNK))
                torch.cuda.synchronize()
                begin = time.perf_counter()
                prefill(weights, shape, n)
                torch.cuda.synchronize()
                print(json.dumps({
                    "what": "recompute in PyTorch", "model": name, "tokens": n,
                    "ms": 1e3 * (time.perf_counter() - begin),
                    "device": torch.cuda.get_device_name(),
                    "torch": torch.__version__}), flush=True)
        del weights
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()

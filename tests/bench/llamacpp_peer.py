#!/usr/bin/env python3
"""Times llama.cpp (through llama-cpp-python's C bindings) on one GGUF.

Prints one JSON object a line: prefill and decode rates, and a slot's save and
restore. Run by compare_llamacpp.py; its Python needs llama-cpp-python.
"""
import argparse
import ctypes
import json
import os
import tempfile
import time

import llama_cpp as ll

BATCH = 2048  # llama.cpp's default for a logical batch


class Context:
    def __init__(self, path, threads, n_ctx, flash_attention):
        ll.llama_backend_init()
        self.model = ll.llama_model_load_from_file(
            path.encode(), ll.llama_model_default_params())
        if not self.model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        c = ll.llama_context_default_params()
        c.n_ctx = n_ctx
        c.n_batch = BATCH
        c.n_ubatch = 512  # its default too
        c.n_threads = c.n_threads_batch = threads
        c.flash_attn_type = 1 if flash_attention else 0
        self.ctx = ll.llama_init_from_model(self.model, c)
        if not self.ctx:
            raise SystemExit("llama.cpp cannot make a context")
        vocab = ll.llama_model_get_vocab(self.model)
        self.n_vocab = ll.llama_vocab_n_tokens(vocab)

    def clear(self):
        ll.llama_memory_clear(ll.llama_get_memory(self.ctx), True)

    def decode(self, tokens):
        array = (ll.llama_token * len(tokens))(*tokens)
        batch = ll.llama_batch_get_one(array, len(tokens))
        if ll.llama_decode(self.ctx, batch):
            raise SystemExit("llama_decode failed")

    def prefill(self, tokens):
        for i in range(0, len(tokens), BATCH):
            self.decode(tokens[i:i + BATCH])
        self.wait()

    def wait(self):
        ll.llama_get_logits_ith(self.ctx, -1)


def token_ids(n, n_vocab):
    """Ids spread over the vocabulary; speed does not depend on them."""
    return [(i * 7919 + 13) % (n_vocab - 1000) + 500 for i in range(n)]


def say(**fields):
    print(json.dumps(dict(engine="llama.cpp", **fields)), flush=True)


def time_prefill(c, n):
    c.clear()
    start = time.perf_counter()
    c.prefill(token_ids(n, c.n_vocab))
    took = time.perf_counter() - start
    say(what="prefill", tokens=n, tokens_per_s=n / took)


def time_decode(c, depth, steps):
    c.clear()
    if depth:
        c.prefill(token_ids(depth, c.n_vocab))
    tokens = token_ids(steps + 1, c.n_vocab)
    c.decode(tokens[:1])
    c.wait()
    start = time.perf_counter()
    for token in tokens[1:]:
        c.decode([token])
        c.wait()
    took = time.perf_counter() - start
    say(what="decode", depth=depth, tokens=steps, tokens_per_s=steps / took)


def time_slot(c, n):
    c.clear()
    tokens = token_ids(n, c.n_vocab)
    start = time.perf_counter()
    c.prefill(tokens)
    recompute = time.perf_counter() - start
    array = (ll.llama_token * n)(*tokens)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "slot.bin").encode()
        start = time.perf_counter()
        ll.llama_state_seq_save_file(c.ctx, path, 0, array, n)
        save = time.perf_counter() - start
        size = os.path.getsize(path)
        c.clear()
        count = ctypes.c_size_t(0)
        out = (ll.llama_token * n)()
        start = time.perf_counter()
        read = ll.llama_state_seq_load_file(
            c.ctx, path, 0, out, n, ctypes.byref(count))
        restore = time.perf_counter() - start
    if read == 0 or count.value != n:
        raise SystemExit("llama.cpp did not restore its slot")
    say(what="slot", tokens=n, recompute_ms=1e3 * recompute,
        save_ms=1e3 * save, restore_ms=1e3 * restore, bytes=size)


def numbers(text):
    return [int(x) for x in text.split(",") if x]


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--model", required=True)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--flash-attention", choices=("on", "off"), default="on")
    p.add_argument("--prefill", type=numbers, default=[])
    p.add_argument("--decode", type=int, default=64)
    p.add_argument("--depth", type=numbers, default=[])
    p.add_argument("--resume", type=numbers, default=[])
    a = p.parse_args()
    longest = max(a.prefill + a.depth + a.resume + [64])
    c = Context(a.model, a.threads, longest + a.decode + 64,
                a.flash_attention == "on")
    c.prefill(token_ids(64, c.n_vocab))  # warm-up
    for n in a.prefill:
        time_prefill(c, n)
    for depth in a.depth:
        time_decode(c, depth, a.decode)
    for n in a.resume:
        time_slot(c, n)


if __name__ == "__main__":
    main()

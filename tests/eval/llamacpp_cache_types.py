#!/usr/bin/env python3
"""Measures the K/V cache types of llama.cpp as xcache-eval measures codecs: on
the same windows of the same texts, the same positions, against its own F16.

  tests/eval/llamacpp_cache_types.py --model M --text prose.txt --csv FILE

Runs through llama-cpp-python in a venv of its own, built for this CPU on first
use, with flash attention (a quantized V needs it). The columns of the CSV are
those of xcache-eval --csv; `page_bytes_per_token` is what the cache's blocks of
K and V take, without llama.cpp's own bookkeeping. One difference is llama.cpp's
way and stays: a query reads all keys and values from the cache, those of its
own block too."""
import argparse
import csv
import ctypes
import math
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, os.path.join(ROOT, "tests", "bench"))

# Name: ggml's number of the type, bytes and elements of a block.
CACHE_TYPES = {
    "f16": (1, 2, 1),
    "q8_0": (8, 34, 32),
    "q5_1": (7, 24, 32),
    "q5_0": (6, 22, 32),
    "q4_1": (3, 20, 32),
    "q4_0": (2, 18, 32),
    "iq4_nl": (20, 18, 32),
}
COLUMNS = ("codec", "tokens", "ppl", "nll", "delta_nll", "kl",
           "top1_agreement", "page_bytes_per_token", "kv_fp16_bytes_per_token",
           "ratio", "ppl_change_percent", "kv_fp16_ppl", "model", "text",
           "window", "windows", "turns", "original_ratio")
UBATCH = 512  # llama.cpp's default
ROWS_AT_ONCE = 4  # of logits in double precision: they stay in the cache


def chunks(count):
    return (slice(at, min(at + ROWS_AT_ONCE, count))
            for at in range(0, count, ROWS_AT_ONCE))


class Reference:
    """The F16 cache's logits of a window as distributions, and the tokens that
    follow in the text."""

    def __init__(self, np, logits, following):
        self.np, self.following = np, following
        self.rows = np.arange(len(following))
        self.p = np.empty(logits.shape, np.float64)
        self.log_sum = np.empty(len(following))
        self.top = logits.argmax(-1)
        self.mean_logit = np.empty(len(following))
        for part in chunks(len(following)):
            x = logits[part].astype(np.float64)
            peak = x.max(-1, keepdims=True)
            p = np.exp(x - peak)
            total = p.sum(-1, keepdims=True)
            self.p[part] = p / total
            self.log_sum[part] = (peak + np.log(total))[:, 0]
            self.mean_logit[part] = (self.p[part] * x).sum(-1)
        self.nll = float(
            (self.log_sum - logits[self.rows, following]).sum())

    def compare(self, logits):
        """Sums over the window, for logits of the type at hand: negative log
        likelihood, KL(F16 || type), positions with the same first choice."""
        np = self.np
        log_sum = np.empty(len(self.following))
        mean_logit = np.empty(len(self.following))
        for part in chunks(len(self.following)):
            x = logits[part].astype(np.float64)
            peak = x.max(-1, keepdims=True)
            mean_logit[part] = np.einsum("ij,ij->i", self.p[part], x)
            x -= peak
            log_sum[part] = peak[:, 0] + np.log(np.exp(x).sum(-1))
        nll = float((log_sum - logits[self.rows, self.following]).sum())
        # E_p[log p - log q]; both logs are a logit less a constant.
        kl = float((self.mean_logit - mean_logit + log_sum -
                    self.log_sum).sum())
        return nll, kl, int((logits.argmax(-1) == self.top).sum())


class Peer:
    """A model of llama.cpp."""

    def __init__(self, path, threads):
        import llama_cpp
        self.ll = llama_cpp
        self.threads = threads
        self.ll.llama_backend_init()
        self.quiet = self.ll.llama_log_callback(lambda *_: None)
        self.ll.llama_log_set(self.quiet, None)
        self.model = self.ll.llama_model_load_from_file(
            path.encode(), self.ll.llama_model_default_params())
        if not self.model:
            sys.exit(f"llama.cpp cannot load {path}")
        self.vocab = self.ll.llama_model_get_vocab(self.model)
        self.n_vocab = self.ll.llama_vocab_n_tokens(self.vocab)

    def metadata(self, key):
        """A value of the GGUF file as text, or none."""
        value = ctypes.create_string_buffer(256)
        size = self.ll.llama_model_meta_val_str(self.model, key.encode(),
                                                value, len(value))
        return value.value.decode() if size >= 0 else None

    def values_per_token(self):
        """Of K and V together: heads may be of a width of their own."""
        arch = self.metadata("general.architecture")
        usual = (self.ll.llama_model_n_embd(self.model) //
                 self.ll.llama_model_n_head(self.model))
        dims = sum(int(self.metadata(f"{arch}.attention.{name}_length") or
                       usual) for name in ("key", "value"))
        return (dims * self.ll.llama_model_n_layer(self.model) *
                self.ll.llama_model_n_head_kv(self.model))

    def tokenize(self, text):
        ids = (self.ll.llama_token * (len(text) + 8))()
        n = self.ll.llama_tokenize(self.vocab, text, len(text), ids, len(ids),
                                   False, False)
        if n < 0:
            sys.exit(f"llama.cpp cannot tokenize: {n}")
        return list(ids[:n])

    def bos(self):
        """What stands before a text: one token or none."""
        return ([self.ll.llama_vocab_bos(self.vocab)]
                if self.ll.llama_vocab_get_add_bos(self.vocab) else [])

    def context(self, cache_type, window):
        c = self.ll.llama_context_default_params()
        c.n_ctx = window
        c.n_batch = c.n_ubatch = min(UBATCH, window)
        c.n_threads = c.n_threads_batch = self.threads
        c.flash_attn_type = 1
        c.type_k = c.type_v = CACHE_TYPES[cache_type][0]
        context = self.ll.llama_init_from_model(self.model, c)
        if not context:
            sys.exit(f"llama.cpp cannot make a context with {cache_type}")
        return context

    def feed(self, np, context, ids, at, wanted):
        """Appends tokens, which begin at position `at`; logits of those at
        `wanted`, [len(wanted), vocab]."""
        batch = self.ll.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i] = token
            batch.pos[i] = at + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = at + i in wanted
        failed = self.ll.llama_decode(context, batch)
        if failed:
            sys.exit(f"llama_decode failed: {failed}")
        out = np.ctypeslib.as_array(
            self.ll.llama_get_logits(context),
            (len(wanted), self.n_vocab)).copy() if wanted else None
        self.ll.llama_batch_free(batch)
        return out

    def logits(self, np, context, ids, wanted=None):
        """Of a window's positions, or those that are wanted, in order,
        [positions, vocab]."""
        self.ll.llama_memory_clear(self.ll.llama_get_memory(context), True)
        wanted = range(len(ids)) if wanted is None else wanted
        out = np.empty((len(wanted), self.n_vocab), np.float32)
        filled = 0
        for at in range(0, len(ids), UBATCH):
            part = ids[at:at + UBATCH]
            here = set(wanted).intersection(range(at, at + len(part)))
            rows = self.feed(np, context, part, at, here)
            if here:
                out[filled:filled + len(here)] = rows
                filled += len(here)
        return out


def measure(peer, model_name, text, window, max_windows, types):
    """Rows of the CSV for one text, F16 first."""
    import numpy as np
    with open(text, "rb") as f:
        ids = peer.tokenize(f.read())
    bos = peer.bos()
    size = window - len(bos)
    windows = [bos + ids[i:i + size] for i in range(0, len(ids) - size + 1,
                                                    size)][:max_windows]
    if not windows:
        sys.exit(f"{text}: expected at least {window} tokens, found {len(ids)}")
    contexts = {t: peer.context(t, window) for t in types}
    sums = {t: [0.0, 0.0, 0] for t in types}  # as Reference.compare's
    baseline_nll, positions = 0.0, 0
    for i, tokens in enumerate(windows):
        f16 = peer.logits(np, contexts["f16"], tokens)[:-1]
        reference = Reference(np, f16, np.array(tokens[1:]))
        baseline_nll += reference.nll
        positions += len(tokens) - 1
        for t in types:
            print(f"{os.path.basename(text)}: window {i + 1} of "
                  f"{len(windows)}: {t}", file=sys.stderr, flush=True)
            logits = f16 if t == "f16" else peer.logits(np, contexts[t],
                                                        tokens)[:-1]
            sums[t] = [x + y for x, y in zip(sums[t],
                                             reference.compare(logits))]
    values = peer.values_per_token()
    rows = []
    for t in types:
        nll, kl, same_top1 = sums[t]
        _, block_bytes, block_values = CACHE_TYPES[t]
        bytes_per_token = values * block_bytes / block_values
        delta = (nll - baseline_nll) / positions
        rows.append((f"llama.cpp {t}", positions, math.exp(nll / positions),
                     nll / positions, delta, kl / positions,
                     same_top1 / positions, bytes_per_token, values * 2,
                     values * 2 / bytes_per_token, 100 * math.expm1(delta),
                     math.exp(baseline_nll / positions), model_name,
                     os.path.splitext(os.path.basename(text))[0], window,
                     len(windows), 1, ""))
        peer.ll.llama_free(contexts[t])
    return rows


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--model", required=True, help="GGUF file")
    p.add_argument("--text", required=True, action="append",
                   help="text file, UTF-8; may be repeated")
    p.add_argument("--types", default=",".join(CACHE_TYPES),
                   help="cache types, for K and for V (default: %(default)s)")
    p.add_argument("--window", default="1024",
                   help="tokens of a window; several: parted by ','")
    p.add_argument("--windows", type=int, default=8, help="of a text, at most")
    p.add_argument("--threads", type=int, default=os.cpu_count())
    p.add_argument("--csv", required=True, help="where the figures go")
    p.add_argument("--peer-venv", default=os.path.join(ROOT, "build", "peer"))
    a = p.parse_args()
    types = ["f16"] + [t for t in a.types.split(",") if t != "f16"]
    unknown = [t for t in types if t not in CACHE_TYPES]
    if unknown:
        p.error(f"--types: expected some of {', '.join(CACHE_TYPES)}, found "
                f"{', '.join(unknown)}")
    if os.path.realpath(sys.prefix) != os.path.realpath(a.peer_venv):
        from compare_llamacpp import peer_python
        python = peer_python(a.peer_venv)
        os.execv(python, [python, os.path.abspath(__file__), *sys.argv[1:]])

    peer = Peer(a.model, a.threads)
    rows = []
    for text in a.text:
        for window in a.window.split(","):
            rows += measure(peer, os.path.basename(a.model), text, int(window),
                            a.windows, types)
    with open(a.csv, "w", encoding="utf-8", newline="") as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(rows)
    for row in rows:
        print(f"{row[13]:>8} {row[14]:>5} {row[0]:<18} ppl {row[2]:8.3f} "
              f"{row[10]:+7.2f} %  kl {row[5]:.5f}  top-1 {row[6]:.4f}  "
              f"{row[7]:8.1f} bytes/token, ratio {row[9]:.2f}")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""How often llama.cpp with quantized K/V caches writes what it writes with F16
K/V, and how often it finds a fact that was told early: the windows and the
counting of xcache-eval --task.

  xcache-eval --task facts --tasks-out facts.jsonl ...
  tests/eval/llamacpp_answers.py --model M --tasks facts.jsonl --csv FILE

With --greedy the answers are not the file's but what llama.cpp itself writes
after each prompt with F16 K/V. Runs in the venv of llamacpp_cache_types.py."""
import argparse
import csv
import json
import os
import sys

import llamacpp_cache_types as types_of

COLUMNS = ("codec", "text", "window", "windows", "tokens", "kl",
           "top1_agreement", "answers", "whole_answers", "prefix_share",
           "ratio")


def write(peer, np, context, prompt, count):
    """The prompt and the likeliest tokens after it."""
    ids = list(prompt)
    row = peer.logits(np, context, ids, [len(ids) - 1])[-1]
    for _ in range(count):
        ids.append(int(row.argmax()))
        row = peer.feed(np, context, ids[-1:], len(ids) - 1,
                        {len(ids) - 1})[-1]
    return ids


def measure(peer, np, windows, types, greedy):
    """{type: [tokens, KL, same first choices, answers, whole, prefixes]}"""
    size = max(len(w["tokens"]) for w in windows) + 1
    contexts = {t: peer.context(t, size) for t in types}
    sums = {t: np.zeros(6) for t in types}
    for number, window in enumerate(windows):
        ids, answers = window["tokens"], window["answers"]
        if greedy:
            begin, end = answers[0]
            ids = write(peer, np, contexts["f16"], ids[:begin], end - begin)
        wanted = [at - 1 for begin, end in answers for at in range(begin, end)]
        following = np.array([ids[at + 1] for at in wanted])
        f16 = peer.logits(np, contexts["f16"], ids, wanted)
        reference = types_of.Reference(np, f16, following)
        for t in types:
            logits = f16 if t == "f16" else peer.logits(np, contexts[t], ids,
                                                        wanted)
            _, kl, same = reference.compare(logits)
            hits = (logits.argmax(-1) == following).tolist()
            sums[t][:3] += len(wanted), kl, same
            for begin, end in answers:
                mine, hits = hits[:end - begin], hits[end - begin:]
                prefix = (mine + [False]).index(False)
                sums[t][3:] += 1, prefix == len(mine), prefix / len(mine)
        if number % 10 == 0:
            print(f"{window['text']}: {number} of {len(windows)}",
                  file=sys.stderr, flush=True)
    for context in contexts.values():
        peer.ll.llama_free(context)
    return sums


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--model", required=True, help="GGUF file")
    p.add_argument("--tasks", required=True, help="of xcache-eval --tasks-out")
    p.add_argument("--greedy", action="store_true",
                   help="llama.cpp writes the answers itself")
    p.add_argument("--types", default="q8_0,q4_0",
                   help="cache types, for K and for V (default: %(default)s)")
    p.add_argument("--threads", type=int, default=os.cpu_count())
    p.add_argument("--csv", required=True, help="where the figures go")
    p.add_argument("--peer-venv",
                   default=os.path.join(types_of.ROOT, "build", "peer"))
    a = p.parse_args()
    if os.path.realpath(sys.prefix) != os.path.realpath(a.peer_venv):
        from compare_llamacpp import peer_python
        python = peer_python(a.peer_venv)
        os.execv(python, [python, os.path.abspath(__file__), *sys.argv[1:]])
    import numpy as np

    peer = types_of.Peer(a.model, a.threads)
    groups = {}
    with open(a.tasks, encoding="utf-8") as f:
        for line in f:
            window = json.loads(line)
            groups.setdefault((window["text"], len(window["tokens"])),
                              []).append(window)
    types = ["f16"] + a.types.split(",")
    with open(a.csv, "w", encoding="utf-8", newline="") as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow(COLUMNS)
        for (text, size), windows in groups.items():
            sums = measure(peer, np, windows, types, a.greedy)
            for t in types:
                tokens, kl, same, answers, whole, prefixes = sums[t].tolist()
                _, block_bytes, block_values = types_of.CACHE_TYPES[t]
                row = (f"llama.cpp {t}", text, size, len(windows), int(tokens),
                       kl / tokens, same / tokens, int(answers), int(whole),
                       prefixes / answers, 2 * block_values / block_bytes)
                writer.writerow(row)
                print(*row, flush=True)
            f.flush()


if __name__ == "__main__":
    main()

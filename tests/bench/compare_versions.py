#!/usr/bin/env python3
"""Races two builds of XCache against each other: turns through the server, and
what xcache-bench measures.

Both run in turn, round after round, so that a machine whose speed drifts is fair
to both; which one is first changes with each round. A figure is the best of all
rounds: what else a machine does only ever slows it. The ratio of the medians
stands beside it. A ratio is above 1 where the second build is better.

  tests/bench/compare_versions.py --model M BEFORE AFTER [--rounds 5]
                                  [--tokens 4000] [--json FILE]

BEFORE and AFTER are build folders (build/release of two checkouts).
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

from compare_llamacpp import ROOT, Figures, collect, machine, run

TURN_MS = ("commit", "decode", "prefill", "ttft")
TURNS = 3  # after the first; each commits an answer and what it was asked


def turns(build, model, tokens, folder):
    """Milliseconds of the first turn, of so many tokens, and of those after it,
    as the server tells them."""
    ready = os.path.join(folder, "ready.json")
    with open(os.path.join(folder, "log"), "wb") as log:
        server = subprocess.Popen(
            [os.path.join(build, "bin", "xcache-server"), "--model", model,
             "--store-dir", os.path.join(folder, "store"), "--ready-file",
             ready, "--listen", "127.0.0.1:0", "--metrics-listen",
             "127.0.0.1:0"], stderr=log, env={**os.environ, "HOME": folder})
    try:
        while not os.path.exists(ready):
            if server.poll() is not None:
                sys.exit(f"{build}: the server ended; see {folder}/log")
            time.sleep(0.05)
        with open(ready, encoding="utf-8") as f:
            address = json.load(f)["listen"]
        # A word is a token or a bit more.
        prompts = ["river " * tokens] + ["And then?"] * TURNS
        done = subprocess.run(
            [os.path.join(build, "bin", "xcache"), "-a", address, "--json",
             "chat", "-s", "raced", "-n", "64", "--temperature", "0"],
            input="\n".join(prompts), capture_output=True, text=True,
            check=True)
        finals = [line["final"] for line in map(json.loads,
                                                done.stdout.splitlines())
                  if "final" in line]
    finally:
        server.terminate()
        server.wait()
    assert len(finals) == len(prompts), done.stderr
    first, later = finals[0]["timings_ms"], [f["timings_ms"]
                                             for f in finals[1:]]
    for key in TURN_MS:
        yield f"first turn: {key} ms", first[key]
        yield f"later turns: {key} ms", sum(t[key] for t in later) / TURNS


def bench(build, a):
    """What xcache-bench says, by name."""
    figures = Figures()
    collect(figures, run([
        os.path.join(build, "bin", "xcache-bench"), "--model", a.model,
        "--threads", str(a.threads), "--resume", str(a.tokens), "--prefill",
        "512,4096", "--depth", "0,4096", "--decode", "64", "--codec", a.codec,
        "--profile-dir", a.profile_dir, "--json"]), "xcache")
    for (_, name), values in figures.values.items():
        yield name, values[0]


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("before", help="a build folder")
    p.add_argument("after", help="another one")
    p.add_argument("--model", required=True, help="GGUF file")
    p.add_argument("--codec", default="xquant-gqa:bits=4")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--tokens", type=int, default=4000)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--profile-dir", default=os.path.join(ROOT, "build",
                                                         "profiles"))
    p.add_argument("--json", help="write all figures there too")
    a = p.parse_args()

    figures = Figures()
    builds = [("before", a.before), ("after", a.after)]
    for i in range(a.rounds):
        for name, build in builds if i % 2 else builds[::-1]:
            print(f"round {i + 1} of {a.rounds}: {name}", file=sys.stderr)
            with tempfile.TemporaryDirectory() as folder:
                for what, value in turns(build, a.model, a.tokens, folder):
                    figures.add(name, what, value)
            for what, value in bench(build, a):
                figures.add(name, what, value)

    print(f"\n{machine()}; {a.threads} threads; {a.tokens} tokens; the best of "
          f"{a.rounds} rounds; ratio above 1: after is better\n")
    rows = []
    for engine, what in figures.values:
        if engine != "before":
            continue
        # Tokens a second are better when there are more of them.
        more = what.startswith(("prefill", "decode at"))

        def ratio(before, after):
            return after / before if more else before / max(after, 1e-9)

        best = [(max if more else min)(figures.values[name, what])
                for name in ("before", "after")]
        medians = [figures.median(name, what) for name in ("before", "after")]
        rows.append((what, *best, ratio(*best), ratio(*medians)))
    width = max(len(row[0]) for row in rows)
    print(f"{'':{width}}  {'before':>12} {'after':>12} {'ratio':>8} "
          f"{'of medians':>11}")
    for what, x, y, of_best, of_medians in sorted(rows):
        print(f"{what:{width}}  {x:12.2f} {y:12.2f} {of_best:8.2f} "
              f"{of_medians:11.2f}")
    if a.json:
        with open(a.json, "w", encoding="utf-8") as f:
            json.dump({"machine": machine(), "threads": a.threads,
                       "tokens": a.tokens, "rounds": a.rounds,
                       "rows": [dict(zip(("what", "before", "after", "ratio",
                                          "ratio_of_medians"), row))
                                for row in rows]}, f, indent=1)


if __name__ == "__main__":
    main()

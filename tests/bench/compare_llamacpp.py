#!/usr/bin/env python3
"""Races XCache against llama.cpp on one GGUF and prints every ratio, lost races
too.

Both run in turn, round after round, with the same number of threads, so that a
machine whose speed drifts is fair to both; a figure is the median over rounds.
llama.cpp runs through llama-cpp-python, built for this CPU into a venv of its
own (made on first use), with flash attention on and off: the better one counts.
XCache seals every full block while it is timed. The first codec is the one that
prefill and decode run with; each codec is resumed.

  tests/bench/compare_llamacpp.py --model M [--codec SPEC ...] [--rounds 3]
                                  [--json FILE]
"""
import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))))
HERE = os.path.dirname(os.path.abspath(__file__))
PEER_PACKAGE = "llama-cpp-python==0.3.36"


def peer_python(venv):
    """The venv's Python with the peer installed; builds it where missing."""
    python = os.path.join(venv, "bin", "python")
    if not os.path.exists(python):
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    have = subprocess.run([python, "-c", "import llama_cpp"],
                          capture_output=True, check=False)
    if have.returncode != 0:
        print(f"building {PEER_PACKAGE} for this CPU (some minutes)",
              file=sys.stderr)
        env = dict(os.environ, CMAKE_ARGS="-DGGML_NATIVE=ON",
                   CMAKE_BUILD_PARALLEL_LEVEL=str(os.cpu_count()))
        subprocess.run([python, "-m", "pip", "install", "-q", "--no-binary",
                        "llama-cpp-python", PEER_PACKAGE], check=True, env=env)
    return python


def run(command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{command[0]} failed ({done.returncode}):\n"
                 f"{done.stderr[-2000:]}")
    return [json.loads(line) for line in done.stdout.splitlines()
            if line.startswith("{")]


def machine():
    name = platform.processor() or "unknown CPU"
    with open("/proc/cpuinfo", encoding="utf-8") as f:
        for line in f:
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    return f"{name}, {os.cpu_count()} CPUs"


class Figures:
    """Every measured value, by engine and name; the median is the figure."""

    def __init__(self):
        self.values = {}

    def add(self, engine, name, value):
        self.values.setdefault((engine, name), []).append(value)

    def median(self, engine, name):
        values = self.values.get((engine, name))
        return statistics.median(values) if values else None


def collect(figures, rows, engine):
    for row in rows:
        if row["what"] == "prefill":
            figures.add(engine, f"prefill {row['tokens']}",
                        row["tokens_per_s"])
        elif row["what"] == "decode":
            figures.add(engine, f"decode at {row['depth']}",
                        row["tokens_per_s"])
        elif row["what"] == "slot":
            n = row["tokens"]
            for key in ("recompute_ms", "save_ms", "restore_ms", "bytes"):
                figures.add(engine, f"{key} {n}", row[key])
        elif row["what"] == "resume":
            n = row["tokens"]
            for key in ("recompute_ms", "save_ms", "resume_memory_ms",
                        "resume_disk_warm_ms", "resume_disk_cold_ms",
                        "remat_ms", "page_bytes"):
                figures.add(engine, f"{key} {n}", row[key])


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--model", required=True, help="GGUF file")
    p.add_argument("--bench", default=os.path.join(
        ROOT, "build", "release", "bin", "xcache-bench"))
    p.add_argument("--codec", action="append", metavar="SPEC",
                   help="may be repeated; default: xquant-gqa:bits=4 and "
                   "xquant-cl-gqa:bits=4")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--prefill", default="512,4096")
    p.add_argument("--depth", default="0,4096")
    p.add_argument("--decode", type=int, default=64)
    p.add_argument("--resume", default="1000,4000,7000")
    p.add_argument("--profile-dir", default=os.path.join(ROOT, "build",
                                                         "profiles"),
                   help="where the codecs' profiles are kept")
    p.add_argument("--peer-venv", default=os.path.join(ROOT, "build", "peer"))
    p.add_argument("--json", help="write all figures there too")
    a = p.parse_args()
    if not os.path.exists(a.bench):
        sys.exit(f"{a.bench}: not built (cmake --build --preset release)")

    python = peer_python(a.peer_venv)
    codecs = a.codec or ["xquant-gqa:bits=4", "xquant-cl-gqa:bits=4"]
    common = ["--model", a.model, "--threads", str(a.threads), "--resume",
              a.resume]
    speed = ["--prefill", a.prefill, "--depth", a.depth, "--decode",
             str(a.decode)]
    peer_command = [python, f"{HERE}/llamacpp_peer.py", *common, *speed,
                    "--flash-attention"]
    contestants = [("fa-on", [*peer_command, "on"])]
    for codec in codecs:
        contestants.append((codec, [
            a.bench, *common, *(speed if codec == codecs[0] else []), "--codec",
            codec, "--profile-dir", a.profile_dir, "--json"]))
    contestants.append(("fa-off", [*peer_command, "off"]))
    figures = Figures()
    for i in range(a.rounds):
        for engine, command in contestants:
            print(f"round {i + 1} of {a.rounds}: {engine}", file=sys.stderr)
            collect(figures, run(command), engine)

    def peer(name, best):
        both = [figures.median(e, name) for e in ("fa-on", "fa-off")]
        return best(v for v in both if v is not None)

    rows = []  # (what, ours, llama.cpp's, ratio: above 1 we win)
    for name in ([f"prefill {n}" for n in a.prefill.split(",")] +
                 [f"decode at {n}" for n in a.depth.split(",")]):
        x, y = figures.median(codecs[0], name), peer(name, max)
        rows.append((f"{codecs[0]}: {name} tokens, tokens/s", x, y, x / y))
    for codec, n in itertools.product(codecs, a.resume.split(",")):
        recompute = peer(f"recompute_ms {n}", min)
        restore = peer(f"restore_ms {n}", min)
        for key, what, other, other_name in (
                ("recompute_ms", "recompute", recompute, "recompute"),
                ("resume_memory_ms", "resume from memory", recompute,
                 "recompute"),
                ("resume_disk_warm_ms", "resume from disk, warm", recompute,
                 "recompute"),
                ("resume_disk_cold_ms", "resume from disk, cold", recompute,
                 "recompute"),
                ("resume_disk_warm_ms", "resume from disk, warm", restore,
                 "slot restore"),
                ("save_ms", "save", peer(f"save_ms {n}", min), "slot save")):
            x = figures.median(codec, f"{key} {n}")
            rows.append((f"{codec}: {what} of {n} tokens, ms (llama.cpp: "
                         f"{other_name})", x, other, other / x))
        x = figures.median(codec, f"page_bytes {n}")
        y = peer(f"bytes {n}", min)
        rows.append((f"{codec}: stored bytes of {n} tokens", x, y, y / x))

    print(f"\n{machine()}; {a.threads} threads; medians of {a.rounds} rounds; "
          f"ratio above 1: XCache wins\n")
    width = max(len(r[0]) for r in rows)
    print(f"{'':{width}}  {'XCache':>12} {'llama.cpp':>12} {'ratio':>8}")
    for what, x, y, ratio in rows:
        lost = "" if ratio >= 1 else "  lost"
        print(f"{what:{width}}  {x:12.1f} {y:12.1f} {ratio:8.2f}{lost}")
    if a.json:
        with open(a.json, "w", encoding="utf-8") as f:
            json.dump({"machine": machine(), "threads": a.threads,
                       "rounds": a.rounds,
                       "rows": [dict(zip(("what", "xcache", "llama_cpp",
                                          "ratio"), r)) for r in rows]},
                      f, indent=1)


if __name__ == "__main__":
    main()

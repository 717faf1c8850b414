#!/usr/bin/env python3
"""How much of their history conversations find in a cache of the same memory, by
codec: chat_load.py against a server for each codec and each --memory, without a
disk.

  R=build/release/integration
  XCACHE_BUILD=build/release XCACHE_SOURCE_DIR=. \\
    PYTHONPATH=$R/stubs:tests/integration \\
    $R/venv/bin/python tests/bench/cache_hits.py --model MODEL \\
    --text build/eval_text/prose.txt --codec kv-fp16 --codec xquant-gqa:bits=4 \\
    --memory 512MiB --memory 1GiB --csv hits.csv

`cache_hits.py --plot hits.svg --csv hits.csv` draws what a run wrote.
"""

import argparse
import collections
import csv
import pathlib
import sys
import tempfile

COLUMNS = ["codec", "memory", "conversations", "tokens_each", "returns",
           "reused_share", "resident_mib"]


def measure(options, codec, memory):
    import chat_load
    import harness
    flags = ["--memory-bytes", memory, "--codec", codec]
    if options.profile_dir:
        flags += ["--profile-dir", options.profile_dir.resolve()]
    with tempfile.TemporaryDirectory() as folder, harness.Server(
            options.model, folder, *flags, store=None) as server:
        options.pid = server.process.pid
        report = chat_load.Load(
            lambda: chat_load.Grpc(server.address, None), options).run()
    return {
        "codec": codec, "memory": memory,
        "conversations": options.conversations,
        **{name: report[name] for name in COLUMNS if name in report}}


def draw(rows, path):
    import matplotlib
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "xcache"
    import matplotlib.pyplot as plt
    series = collections.defaultdict(list)
    memories = list(dict.fromkeys(row["memory"] for row in rows))
    for row in rows:
        series[row["codec"]].append((memories.index(row["memory"]),
                                     100 * float(row["reused_share"])))
    figure, axes = plt.subplots(figsize=(6, 3.8))
    for codec, points in series.items():
        axes.plot(*zip(*sorted(points)), marker="o", label=codec)
    axes.set(xlabel="--memory-bytes", ylabel="history reused, %",
             xticks=range(len(memories)), ylim=(0, 100))
    axes.set_xticklabels(memories)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--csv", required=True, type=pathlib.Path)
    p.add_argument("--plot", type=pathlib.Path,
                   help="draw the CSV here, measure nothing")
    p.add_argument("--model", type=pathlib.Path)
    p.add_argument("--codec", action="append", default=[])
    p.add_argument("--memory", action="append", default=[])
    p.add_argument("--profile-dir", type=pathlib.Path)
    if any(word.split("=")[0] == "--plot" for word in sys.argv):
        o = p.parse_args()
        with open(o.csv, encoding="utf-8", newline="") as f:
            draw(list(csv.DictReader(f)), o.plot)
        return
    import chat_load
    chat_load.add_options(p)
    o = p.parse_args()
    with open(o.csv, "a", encoding="utf-8", newline="") as f:
        writer = csv.DictWriter(f, COLUMNS)
        if f.tell() == 0:
            writer.writeheader()
        for memory in o.memory:
            for codec in o.codec:
                writer.writerow(measure(o, codec, memory))
                f.flush()


if __name__ == "__main__":
    main()

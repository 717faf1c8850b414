#!/usr/bin/env python3
"""Plots of gpu_suite.sh's results: resume against recompute and copy, and decode
steps by depth and batch, one SVG each for every model.
  gpu_plots.py RESULTS.jsonl OUT_FOLDER"""
import json
import os
import sys

import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


def label(row):
    if row["what"] == "resume":
        return f"resume, {row['codec'].split(',')[0]}, {row['policy']}"
    return row["what"]


def name_of(model):
    return model.replace("synthetic ", "")


def lines(rows, x, key, title, y_label, path):
    series = {}
    for row in rows:
        if "ms" in row:
            series.setdefault(key(row), []).append((row[x], row["ms"]))
    if not series:
        return
    figure, axes = plt.subplots(figsize=(7, 4.5))
    for name, points in series.items():
        points.sort()
        axes.plot(*zip(*points), marker="o", label=name)
    axes.set(xscale="log", yscale="log", xlabel=x, ylabel=y_label, title=title)
    axes.legend(fontsize="small")
    axes.grid(True, which="both", alpha=0.3)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def main():
    results, out = sys.argv[1:]
    with open(results, encoding="utf-8") as f:
        rows = [json.loads(line) for line in f if line.startswith("{")]
    device = next((r["device"] for r in rows if "device" in r), "")
    for model in sorted({name_of(r["model"]) for r in rows if "model" in r}):
        mine = [r for r in rows if name_of(r.get("model", "")) == model]
        ways = ("resume", "recompute", "recompute in PyTorch", "copy K/V")
        lines([r for r in mine if r["what"] in ways], "tokens", label,
              f"{model} on {device}: a conversation back in memory", "ms",
              os.path.join(out, f"resume_{model}.svg"))
        decode = [r for r in mine if r["what"] == "decode"]
        for depth in sorted({r["depth"] for r in decode}):
            lines([r for r in decode if r["depth"] == depth], "batch",
                  lambda r: f"{r['codec'].split(',')[0]}, {r['policy']}",
                  f"{model} on {device}: decode at {depth} tokens",
                  "ms a step",
                  os.path.join(out, f"decode_{model}_{depth}.svg"))


if __name__ == "__main__":
    main()

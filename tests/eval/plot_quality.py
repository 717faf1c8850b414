#!/usr/bin/env python3
"""Plots quality against bytes per token from CSV files of xcache-eval --csv and
llamacpp_cache_types.py: a column for each text, loss of perplexity above,
divergence from FP16 K/V below.

  tests/eval/plot_quality.py --out quality.svg eval.csv llamacpp.csv

The ending of --out says the format; an SVG has its text as text and is the same
bytes for the same figures. Draws with matplotlib in a venv of its own, made on
first use."""
import argparse
import csv
import os
import re
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
PACKAGE = "matplotlib==3.9.4"

# Losses below this, in percent, are drawn on a linear scale: they are noise.
LINEAR_PERCENT = 0.1
COLORS = ("#1b6ca8", "#d1495b", "#2e933c", "#8e5aa8", "#c07f1a", "#3c3c3c",
          "#5f9ea0", "#b56576")
PEER = "llama.cpp"


def plot_python(venv):
    """The venv's Python with matplotlib; makes it where it is missing."""
    python = os.path.join(venv, "bin", "python")
    if not os.path.exists(python):
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    if subprocess.run([python, "-c", "import matplotlib"], check=False,
                      capture_output=True).returncode != 0:
        print(f"installing {PACKAGE}", file=sys.stderr)
        subprocess.run([python, "-m", "pip", "install", "-q", PACKAGE],
                       check=True)
    return python


def series_and_label(codec):
    """"xquant-gqa:bits=4,preset=plain,..." is ("xquant-gqa, plain", "4");
    "llama.cpp q8_0" is ("llama.cpp", "q8_0")."""
    if codec.startswith(PEER + " "):
        return PEER, codec[len(PEER) + 1:]
    name, _, options = codec.partition(":")
    options = dict(o.split("=", 1) for o in options.split(",") if "=" in o)
    plain = (options.get("preset") == "plain" or
             options.get("clip") == "minmax")
    return (name + (", plain" if plain else ""),
            options.get("bits", options.get("rate", "")))


def read(paths):
    """{(text, window): {series: [(bytes, loss %, KL, label)]}}"""
    panels = {}
    for path in paths:
        with open(path, encoding="utf-8", newline="") as f:
            for row in csv.DictReader(f):
                series, label = series_and_label(row["codec"])
                key = row["text"], int(row["window"])
                panels.setdefault(key, {}).setdefault(series, []).append(
                    (float(row["page_bytes_per_token"]),
                     float(row["ppl_change_percent"]), float(row["kl"]),
                     label))
    return panels


def draw(panels, out):
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    matplotlib.rcParams.update({"svg.fonttype": "none",
                                "svg.hashsalt": "xcache", "font.size": 9})
    names = sorted({s for p in panels.values() for s in p})
    figure, axes = pyplot.subplots(
        2, len(panels), figsize=(5.0 * len(panels), 7.0), squeeze=False,
        sharex="col", sharey="row")
    for column, ((text, window), panel) in enumerate(sorted(
            panels.items(), key=lambda item: (item[0][1], item[0][0]))):
        for series, points in sorted(panel.items()):
            points = sorted(points)
            color = COLORS[names.index(series) % len(COLORS)]
            style = {"color": color, "label": series, "markersize": 4,
                     "marker": "s" if series == PEER else "o",
                     "linestyle": ":" if series == PEER else "-",
                     "linewidth": 1}
            for row, value in ((0, 1), (1, 2)):
                ax = axes[row][column]
                # The reference itself, and what equals it, has no place on a
                # logarithmic scale.
                shown = [p for p in points if row == 0 or p[2] > 1e-9]
                ax.plot([p[0] for p in shown], [p[value] for p in shown],
                        **style)
                for p in shown:
                    ax.annotate(p[3], (p[0], p[value]), fontsize=7,
                                color=color, xytext=(3, 3),
                                textcoords="offset points")
        top, bottom = axes[0][column], axes[1][column]
        top.set_title(f"{text}, windows of {window}")
        top.set_yscale("symlog", linthresh=LINEAR_PERCENT)
        top.axhline(0.0, color="#999999", linewidth=0.5)
        bottom.set_yscale("log")
        bottom.set_xscale("log", base=2)
        ticks = [1024 * 2 ** i for i in range(6)]
        bottom.set_xticks(ticks, [f"{t // 1024}k" for t in ticks])
        bottom.set_xlabel("bytes per token")
        for ax in (top, bottom):
            ax.grid(True, color="#dddddd", linewidth=0.5)
    axes[0][0].set_ylabel("loss of perplexity, %")
    axes[1][0].set_ylabel("KL from FP16 K/V, nats")
    axes[-1][0].legend(fontsize=8, frameon=False, loc="upper left")
    figure.tight_layout()
    svg = out.endswith(".svg")
    figure.savefig(out, dpi=120,
                   metadata={"Date": None} if svg else None)
    if svg:
        # Numbers to a hundredth of a point: nobody sees more.
        with open(out, encoding="utf-8") as f:
            text = f.read()
        text = re.sub(r"(\d+\.\d{2})\d+", r"\1", text)
        text = re.sub(r"[ \t]+\n", "\n", text)
        with open(out, "w", encoding="utf-8") as f:
            f.write(text)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("csv", nargs="+")
    p.add_argument("--out", required=True, help="a .svg or .png file")
    p.add_argument("--text", help="these texts only, parted by ','")
    p.add_argument("--window", help="these windows only, parted by ','")
    p.add_argument("--venv", default=os.path.join(ROOT, "build", "plot"))
    a = p.parse_args()
    if os.path.realpath(sys.prefix) != os.path.realpath(a.venv):
        python = plot_python(a.venv)
        os.execv(python, [python, os.path.abspath(__file__), *sys.argv[1:]])
    texts = a.text.split(",") if a.text else None
    windows = a.window.split(",") if a.window else None
    panels = {key: panel for key, panel in read(a.csv).items()
              if (texts is None or key[0] in texts) and
              (windows is None or str(key[1]) in windows)}
    if not panels:
        p.error("no figures of these texts and windows in the CSV files")
    draw(panels, a.out)


if __name__ == "__main__":
    main()

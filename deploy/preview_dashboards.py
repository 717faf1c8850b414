#!/usr/bin/env python3
"""Draws the boards of deploy/grafana from a live Prometheus, without a Grafana:
what is on them, where it is, and the data of now.

    deploy/preview_dashboards.py --prometheus http://127.0.0.1:9090 \\
        --out boards.png [--boards users,cache,fleet] [--job xcache] [--minutes 15]

Of each board the upper part, its main panels; --all draws the rest, too. Panels
are those of type stat and timeseries; one without data says so, and with --strict
that is an error. The ending of --out says the format (PNG, SVG, PDF). Draws with
matplotlib in a virtual environment of its own, made on the first run below --work
(~/.cache/xcache).
"""

import argparse
import json
import math
import os
import pathlib
import subprocess
import sys
import time
import urllib.parse
import urllib.request

PACKAGE = "matplotlib==3.9.4"
GRAFANA = pathlib.Path(__file__).resolve().parent / "grafana"
# Grafana's grid has 24 columns; here a column is so many inches wide, a row high.
COLUMN, ROW = 0.5, 0.36
# A board's main panels end here: figures, and two rows of curves.
MAIN_ROWS = 20
POINTS = 240  # of a curve
NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def inside_venv(work):
    """Runs this script again in the venv, where matplotlib is; does not return."""
    venv = pathlib.Path(work) / "preview-venv"
    python = venv / "bin/python"
    if not python.exists() or subprocess.run(
            [python, "-c", "import matplotlib"], check=False,
            stderr=subprocess.DEVNULL).returncode != 0:
        subprocess.run([sys.executable, "-m", "venv", "--clear", venv],
                       check=True)
        subprocess.run([venv / "bin/pip", "install", "--quiet",
                        "--disable-pip-version-check", PACKAGE], check=True)
    os.execv(python, [str(python), *sys.argv, "--in-venv"])


class Prometheus:

    def __init__(self, url, job, seconds):
        self.url, self.job = url.rstrip("/"), job
        self.end = time.time()
        self.start = self.end - seconds
        self.step = max(1.0, seconds / POINTS)

    def _expression(self, text):
        # As Grafana works it out: four scrapes at least.
        interval = f"{max(60, math.ceil(4 * self.step))}s"
        for name, value in (("$__rate_interval", interval), ("$job", self.job),
                            ("$instance", ".*")):
            text = text.replace(name, value)
        return text

    def series(self, expression):
        """[(labels, [(time, value)])] over the time that is drawn."""
        query = urllib.parse.urlencode({
            "query": self._expression(expression), "start": self.start,
            "end": self.end, "step": self.step})
        with NO_PROXY.open(f"{self.url}/api/v1/query_range?{query}",
                           timeout=60) as answer:
            found = json.load(answer)["data"]["result"]
        out = []
        for one in found:
            points = [(at, float(value)) for at, value in one["values"]]
            points = [(at, value) for at, value in points
                      if math.isfinite(value)]
            if points:
                out.append((one["metric"], points))
        return out


def legend(target, labels):
    text = target.get("legendFormat") or ""
    for name, value in labels.items():
        text = text.replace("{{" + name + "}}", value).replace(
            "{{ " + name + " }}", value)
    return text or ", ".join(v for k, v in sorted(labels.items())
                             if k != "__name__")


def scaled(value, steps, suffix):
    for factor, name in steps:
        if abs(value) >= factor:
            return f"{value / factor:.3g} {name}{suffix}".strip()
    return f"{value:.3g} {suffix}".strip()


SI = [(1e9, "G"), (1e6, "M"), (1e3, "k")]
BINARY = [(2.0**40, "TiB"), (2.0**30, "GiB"), (2.0**20, "MiB"),
          (2.0**10, "KiB")]


def in_unit(value, unit):
    """A value as Grafana would write it, of the units that our boards use."""
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    if unit in ("bytes", "Bps"):
        return scaled(value, BINARY, "/s" if unit == "Bps" else "")
    if unit == "s":
        for factor, name in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"),
                             (1e-3, "ms"), (1e-6, "us")):
            if abs(value) >= factor:
                return f"{value / factor:.3g} {name}"
        return "0 s"
    return scaled(value, SI, {"reqps": "req/s", "cps": "/s"}.get(unit, ""))


def color_of(value, defaults):
    color = "black"
    for step in defaults.get("thresholds", {}).get("steps", []):
        if step["value"] is None or value >= step["value"]:
            color = step["color"]
    return {"green": "#2b8a3e", "orange": "#e8890c", "red": "#c92a2a"}.get(
        color, color)


def draw_stat(axes, found, defaults):
    axes.axis("off")
    values = [points[-1][1] for _, _, points in found]
    if not values:
        return
    text = "  ".join(in_unit(v, defaults.get("unit")) for v in values[:3])
    axes.text(0.5, 0.42, text, ha="center", va="center", fontsize=17,
              color=color_of(values[0], defaults), transform=axes.transAxes)


def draw_curves(axes, found, defaults, prometheus):
    from matplotlib.ticker import FuncFormatter
    for target, labels, points in found[:12]:
        axes.plot([(at - prometheus.end) / 60 for at, _ in points],
                  [value for _, value in points], linewidth=1,
                  label=legend(target, labels))
    axes.set_xlim((prometheus.start - prometheus.end) / 60, 0)
    axes.xaxis.set_major_formatter(FuncFormatter(
        lambda value, _: f"{value:g} min"))
    axes.yaxis.set_major_formatter(FuncFormatter(
        lambda value, _: in_unit(value, defaults.get("unit"))))
    axes.tick_params(labelsize=6)
    axes.grid(alpha=0.3, linewidth=0.5)
    if defaults.get("min") is not None:
        axes.set_ylim(bottom=defaults["min"])
    if found:
        axes.legend(fontsize=5.5, ncols=3, loc="upper left", frameon=False)


def panels_of(board, rows):
    """Those that are drawn: within so many rows of the grid, from the top."""
    return [panel for panel in board["panels"]
            if panel["type"] in ("stat", "timeseries") and
            panel["gridPos"]["y"] + panel["gridPos"]["h"] <= rows]


def draw(boards, prometheus, rows, out):
    """Returns the titles of panels that had no data."""
    import matplotlib
    matplotlib.use("Agg")
    # Letters stay letters in an SVG, and it is the same for the same data.
    matplotlib.rcParams.update({
        "svg.fonttype": "none", "svg.hashsalt": "xcache", "path.simplify": True,
        "path.simplify_threshold": 1.0})
    from matplotlib import pyplot

    heights = []
    for board in boards:
        heights.append(2 + max(p["gridPos"]["y"] + p["gridPos"]["h"]
                               for p in panels_of(board, rows)))
    total = sum(heights)
    figure = pyplot.figure(figsize=(24 * COLUMN, total * ROW), dpi=110)
    empty, top = [], 0
    for board, height in zip(boards, heights):
        figure.text(0.01, 1 - (top + 1.2) / total, board["title"], fontsize=13,
                    weight="bold")
        for panel in panels_of(board, rows):
            place = panel["gridPos"]
            axes = figure.add_axes((
                (place["x"] + 1.4) / 24,
                1 - (top + 2 + place["y"] + place["h"] - 1.1) / total,
                (place["w"] - 1.8) / 24, (place["h"] - 2.2) / total))
            axes.set_title(panel["title"], fontsize=8, loc="left", pad=3)
            defaults = panel.get("fieldConfig", {}).get("defaults", {})
            found = [(target, labels, points) for target in panel["targets"]
                     for labels, points in prometheus.series(target["expr"])]
            if not found:
                empty.append(f"{board['title']}: {panel['title']}")
                axes.text(0.5, 0.5, "no data", ha="center", va="center",
                          fontsize=8, color="grey", transform=axes.transAxes)
            if panel["type"] == "stat":
                draw_stat(axes, found, defaults)
            else:
                draw_curves(axes, found, defaults, prometheus)
        top += height
    figure.savefig(out, metadata={"Date": None} if out.endswith(".svg")
                   else None)
    return empty


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--prometheus", required=True, metavar="URL")
    parser.add_argument("--out", required=True, metavar="FILE")
    parser.add_argument("--all", action="store_true",
                        help="whole boards, not their main panels alone")
    parser.add_argument("--boards", default="users,cache,fleet")
    parser.add_argument("--job", default="xcache")
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--strict", action="store_true",
                        help="fail where a panel has no data")
    parser.add_argument("--work", metavar="DIR",
                        default=os.path.expanduser("~/.cache/xcache"))
    parser.add_argument("--in-venv", action="store_true",
                        help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    boards = []
    for name in arguments.boards.split(","):
        path = GRAFANA / f"{name}.json"
        if not path.exists():
            known = ", ".join(sorted(p.stem for p in GRAFANA.glob("*.json")))
            parser.error(f"--boards: expected some of {known}, found {name!r}")
        boards.append(json.loads(path.read_text()))
    if not arguments.in_venv:
        inside_venv(arguments.work)
    prometheus = Prometheus(arguments.prometheus, arguments.job,
                            60 * arguments.minutes)
    rows = math.inf if arguments.all else MAIN_ROWS
    empty = draw(boards, prometheus, rows, arguments.out)
    print(json.dumps({"out": arguments.out, "empty": empty}))
    return 1 if empty and arguments.strict else 0


if __name__ == "__main__":
    sys.exit(main())

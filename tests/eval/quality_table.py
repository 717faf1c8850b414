#!/usr/bin/env python3
"""Prints a Markdown table of CSV files of xcache-eval --csv and
llamacpp_cache_types.py: loss of perplexity and, in brackets, the mean KL
divergence from FP16 K/V for each text, and the ratio of bytes.

  tests/eval/quality_table.py eval.csv [llamacpp.csv ...]

A codec is shown by its bits and by what sets it apart from the first codec of
the same name and bits."""
import csv
import sys


def parse(spec):
    name, _, options = spec.partition(":")
    return name, dict(o.split("=", 1) for o in options.split(",") if "=" in o)


def label(spec, first_of):
    name, options = parse(spec)
    bits = options.get("bits")
    if bits is None:
        return spec
    first = first_of.setdefault((name, bits), options)
    apart = {k: v for k, v in options.items() if first.get(k) != v}
    if apart.get("clip") == "minmax" and apart.get("scales") == "fp16":
        apart = {"preset": "plain"}
    words = [f"bits={bits}"] + [f"{k}={v}" for k, v in sorted(apart.items())]
    return f"{name}:{','.join(words)}"


def main():
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        sys.exit(__doc__)
    first_of, rows, texts = {}, {}, []
    for path in sys.argv[1:]:
        with open(path, encoding="utf-8", newline="") as f:
            for row in csv.DictReader(f):
                text = row["text"].rsplit("/", 1)[-1].removesuffix(".txt")
                if text not in texts:
                    texts.append(text)
                cells = rows.setdefault(label(row["codec"], first_of), {})
                cells[text] = (f"{float(row['ppl_change_percent']):+.2f} % "
                               f"({float(row['kl']):.4f})")
                cells["ratio"] = f"{float(row['ratio']):.2f}"
                if row.get("original_ratio"):
                    cells["original"] = f"{float(row['original_ratio']):.2f}"
    columns = texts + ["ratio"]
    if any("original" in cells for cells in rows.values()):
        columns.append("original")
    print("| codec | " + " | ".join(columns) + " |")
    print("| --- |" + " --- |" * len(columns))
    for codec, cells in rows.items():
        print(f"| `{codec}` | " +
              " | ".join(cells.get(c, "") for c in columns) + " |")


if __name__ == "__main__":
    main()

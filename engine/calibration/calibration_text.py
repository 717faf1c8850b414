#!/usr/bin/env python3
"""Writes texts for xcache-calibrate, of Debian 12 packages that anybody can
install and whose licences let anybody use them:

  prose.txt, sayings.txt    English: an essay (anarchism, GPL-2 or GFDL), short
                            pieces (fortunes)
  docs.txt, russian.txt     developers-reference in two languages (GPL-2+)
  spanish.txt, italian.txt, portuguese.txt, japanese.txt, chinese.txt
                            debian-reference (GPL-2+)
  python.txt, library.txt   modules of Python's library (PSF)
  cpp.txt, scripts.txt, markdown.txt   this project's own

    deploy/install_packages.sh calibrate
    engine/calibration/calibration_text.py FOLDER
    build/release/bin/xcache-calibrate --model M --out PROFILES \\
        $(printf -- '--text %s ' FOLDER/*.txt)

Never of those that codecs are judged by (tests/eval/eval_text.py), and neither
French nor German, so that those stay languages that no profile has seen."""
import argparse
import glob
import gzip
import html
import os
import re
import sys

SHARE = "/usr/share"
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))))
MIN_PAGE_BYTES = 40_000
# Some hundred kB of each are plenty: a profile takes a few windows of each.
MAX_CHARS = 600_000
SAYINGS = ("literature", "science", "people", "wisdom", "politics", "work",
           "computers", "law", "education", "songs-poems")
PYTHON = ("heapq.py", "tarfile.py", "subprocess.py", "shutil.py", "csv.py",
          "dataclasses.py", "pathlib.py", "zipfile.py", "http/client.py",
          "threading.py")
# Packages of the library whose modules are taken whole.
LIBRARY = ("json", "logging", "email", "unittest", "concurrent/futures",
           "asyncio")
LANGUAGES = {"spanish": "es", "italian": "it", "portuguese": "pt",
             "japanese": "ja", "chinese": "zh-cn"}


def read(path):
    opener = gzip.open if path.endswith(".gz") else open
    with opener(path, "rt", encoding="utf-8", errors="replace") as f:
        return f.read()


def of_html(path):
    text = re.sub(r"(?s)<(script|style|head).*?</\1>", " ", read(path))
    text = re.sub(r"</(p|h\d|li|dt|dd|tr|div|pre)>", "\n", text)
    text = html.unescape(re.sub(r"<[^>]+>", "", text))
    return "\n".join(line.rstrip() for line in text.split("\n")
                     if line.strip())


def pages(pattern):
    return [p for p in sorted(glob.glob(pattern))
            if os.path.getsize(p) > MIN_PAGE_BYTES and "index" not in p]


def texts():
    essay = sorted(glob.glob(f"{SHARE}/doc/anarchism/markdown/sec*"))
    yield "prose", [read(p) for p in essay[::6]]
    yield "sayings", [
        read(p).replace("\n%\n", "\n\n")
        for p in (f"{SHARE}/games/fortunes/{name}" for name in SAYINGS)
        if os.path.exists(p)]
    yield "docs", [read(p) for p in sorted(glob.glob(
        f"{SHARE}/developers-reference/_sources/*.txt"))]
    yield "russian", [of_html(p) for p in pages(
        f"{SHARE}/developers-reference/ru/*.html")]
    for name, code in LANGUAGES.items():
        yield name, [of_html(p) for p in pages(
            f"{SHARE}/debian-reference/*.{code}.html")]
    library = os.path.dirname(os.__file__)
    yield "python", [read(os.path.join(library, name)) for name in PYTHON]
    yield "library", [read(p) for name in LIBRARY
                      for p in sorted(glob.glob(f"{library}/{name}/*.py"))[::2]]
    sources = sorted(glob.glob(f"{ROOT}/engine/**/*.cc", recursive=True) +
                     glob.glob(f"{ROOT}/server/**/*.cc", recursive=True))
    yield "cpp", [read(p) for p in sources[::5]]
    yield "scripts", [read(p) for pattern in (
        "deploy/*.sh", "deploy/**/*.yaml", "proto/**/*.proto",
        "engine/**/CMakeLists.txt", "tests/integration/*.py")
        for p in sorted(glob.glob(f"{ROOT}/{pattern}", recursive=True))[::2]]
    documents = [p for p in sorted(glob.glob(f"{ROOT}/**/*.md",
                                             recursive=True))
                 if "/build/" not in p]
    yield "markdown", [read(p) for p in documents]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder")
    folder = parser.parse_args().folder
    os.makedirs(folder, exist_ok=True)
    missing = []
    for name, parts in texts():
        text = "\n\n".join(parts)[:MAX_CHARS]
        if not text:
            missing.append(name)
            continue
        with open(os.path.join(folder, name + ".txt"), "w",
                  encoding="utf-8") as f:
            f.write(text)
    if missing:
        sys.exit("calibration_text.py: expected text for " +
                 ", ".join(missing) + ", found none: run "
                 "deploy/install_packages.sh calibrate")


if __name__ == "__main__":
    main()

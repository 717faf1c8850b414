#!/usr/bin/env python3
"""Prints one of the four fixed texts on which codecs are measured, of Debian 12
packages that anybody can install:

  prose   English: the paragraphs of ten long chapters of the Debian
          Administrator's Handbook (debian-handbook 11.20220922)
  code    Python: the modules of PLY, a parser generator (python3-ply 3.11-5),
          finished and small
  german  the same chapters in German, without what is not translated
  french  and in French

    deploy/install_packages.sh eval
    tests/eval/eval_text.py prose > prose.txt
    tests/eval/eval_text.py --all FOLDER     # prose.txt, code.txt and so on

A profile that is computed from data must never be computed from these: they are
what codecs are judged by. (That of xquant-tc is computed from the texts of
engine/calibration/calibration_text.py, the others from weights alone.) The SHA-256 of each is below; another one, of another version of the
package, is said on stderr, and figures of it do not compare."""
import argparse
import glob
import hashlib
import html.parser
import os
import re
import sys

HANDBOOK = "/usr/share/doc/debian-handbook/html"
MIN_CHAPTER_BYTES = 60_000
NUM_CHAPTERS = 10
# Shorter lines are headings, captions and pieces of navigation.
MIN_LINE_CHARS = 81

PLY = "/usr/lib/python3/dist-packages/ply"
PLY_MODULES = ("yacc.py", "lex.py", "cpp.py", "ctokens.py", "ygen.py")

SHA256 = {
    "prose":
        "aa66b13ee9470ae720d2617e9090dfbde508ec2eebd84a42a223150c19d5b80b",
    "code":
        "4ecccf89d226bf67ef2aa76537099ed693e014f7eae05706aa76fe1b87bf5dd8",
    "german":
        "4957e70eaf5476e420d0d4a8dbaa2726839b79a3da0e68bcc09047663e9b78a3",
    "french":
        "4d65d4ea47a441ce6955536db212ecde72a38270f8c607d5aefd461256769419",
}


class Prose(html.parser.HTMLParser):
    """What is left of a page without scripts, styles and listings."""
    DROPPED = {"script", "style", "head", "pre"}
    STARTS_LINE = {"p", "div", "h1", "h2", "h3", "li", "dt", "dd", "br"}
    ENDS_LINE = {"p", "h1", "h2", "h3"}

    def __init__(self):
        super().__init__()
        self.depth_dropped = 0
        self.pieces = []

    def handle_starttag(self, tag, attrs):
        self.depth_dropped += tag in self.DROPPED
        if tag in self.STARTS_LINE:
            self.pieces.append("\n")

    def handle_endtag(self, tag):
        self.depth_dropped -= tag in self.DROPPED
        if tag in self.ENDS_LINE:
            self.pieces.append("\n")

    def handle_data(self, data):
        if self.depth_dropped <= 0:
            self.pieces.append(data)


def lines(path):
    prose = Prose()
    with open(path, encoding="utf-8", errors="replace") as page:
        prose.feed(page.read())
    text = re.sub(r"[ \t\xa0]+", " ", "".join(prose.pieces))
    return [line.strip(" ") for line in text.strip().split("\n")]


def handbook(language):
    # Chosen by the English pages, so that the texts say the same.
    chapters = [os.path.basename(path)
                for path in sorted(glob.glob(HANDBOOK + "/en-US/*.html"))
                if os.path.getsize(path) > MIN_CHAPTER_BYTES
                and "index" not in path][:NUM_CHAPTERS]
    paths = [os.path.join(HANDBOOK, language, name) for name in chapters]
    if not paths or not all(os.path.exists(path) for path in paths):
        sys.exit(f"eval_text.py: expected {NUM_CHAPTERS} chapters in "
                 f"{HANDBOOK}/{language}, found "
                 f"{sum(os.path.exists(path) for path in paths)}: install the "
                 "package debian-handbook")
    return [line for path in paths for line in lines(path)
            if len(line) >= MIN_LINE_CHARS]


def prose():
    return "\n\n".join(handbook("en-US"))


def translated(language):
    english = set(handbook("en-US"))
    return "\n\n".join(line for line in handbook(language)
                       if line not in english)


def code():
    sources = []
    for name in PLY_MODULES:
        path = os.path.join(PLY, name)
        if not os.path.exists(path):
            sys.exit(f"eval_text.py: expected {path}, found none: install the "
                     "package python3-ply")
        with open(path, encoding="utf-8") as source:
            sources.append(source.read())
    return "\n".join(sources)


TEXTS = {"prose": prose, "code": code,
         "german": lambda: translated("de-DE"),
         "french": lambda: translated("fr-FR")}


def make(name):
    data = TEXTS[name]().encode("utf-8")
    digest = hashlib.sha256(data).hexdigest()
    if digest != SHA256[name]:
        print(f"eval_text.py: {name}: expected SHA-256 {SHA256[name]}, found "
              f"{digest}: another version of the package; its figures do not "
              "compare with those of this one", file=sys.stderr)
    return data


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("text", nargs="?", choices=TEXTS)
    p.add_argument("--all", metavar="FOLDER",
                   help="write every text into this folder as NAME.txt")
    a = p.parse_args()
    if bool(a.text) == bool(a.all):
        p.error(f"expected one of {', '.join(TEXTS)}, or --all FOLDER")
    if a.text:
        sys.stdout.buffer.write(make(a.text))
        return
    os.makedirs(a.all, exist_ok=True)
    for name in TEXTS:
        with open(os.path.join(a.all, name + ".txt"), "wb") as out:
            out.write(make(name))


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Prints the text on which codecs are measured: English prose that anybody can
install, the paragraphs of ten long chapters of the Debian Administrator's
Handbook (Debian 12, package debian-handbook).

    apt-get install debian-handbook
    tests/eval/eval_text.py > handbook.txt

Its SHA-256 is in tests/golden/perplexity_smollm2.json."""
import glob
import html.parser
import os
import re
import sys

FOLDER = "/usr/share/doc/debian-handbook/html/en-US"
MIN_CHAPTER_BYTES = 60_000
NUM_CHAPTERS = 10
# Shorter lines are headings, captions and pieces of navigation.
MIN_LINE_CHARS = 81


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


def main():
    chapters = [path for path in sorted(glob.glob(FOLDER + "/*.html"))
                if os.path.getsize(path) > MIN_CHAPTER_BYTES
                and "index" not in path]
    if not chapters:
        sys.exit(f"eval_text.py: no chapters in {FOLDER}: "
                 "install the package debian-handbook")
    paragraphs = [line for path in chapters[:NUM_CHAPTERS]
                  for line in lines(path) if len(line) >= MIN_LINE_CHARS]
    sys.stdout.write("\n\n".join(paragraphs))


if __name__ == "__main__":
    main()

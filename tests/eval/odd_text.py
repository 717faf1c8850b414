#!/usr/bin/env python3
"""Writes texts that no calibration thinks of, on which a codec may take more
bytes but must not lose the thread: one repeated letter, a repeated line, random
words, Base64, emoji, a table of numbers.

    tests/eval/odd_text.py FOLDER
    build/release/bin/xcache-eval --model M --profile-dir profiles --windows 1 \\
        --codec 'xquant-tc:rate=small' $(printf -- '--text %s ' FOLDER/*.txt)
"""
import base64
import os
import random
import sys

CHARS = 24_000


def texts():
    draw = random.Random(1)
    yield "letter", "a" * CHARS
    yield "line", "All work and no play makes Jack a dull boy.\n" * 400
    yield "words", " ".join(
        "".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(1, 9)))
        for _ in range(CHARS // 5))
    yield "base64", base64.b64encode(draw.randbytes(CHARS)).decode()
    yield "emoji", "".join(chr(draw.randint(0x1f300, 0x1f64f))
                           for _ in range(CHARS // 4))
    yield "table", "\n".join(
        ",".join(f"{draw.gauss(0, 100):.2f}" for _ in range(8))
        for _ in range(CHARS // 50))


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    os.makedirs(sys.argv[1], exist_ok=True)
    for name, text in texts():
        with open(os.path.join(sys.argv[1], name + ".txt"), "w",
                  encoding="utf-8") as out:
            out.write(text)


if __name__ == "__main__":
    main()

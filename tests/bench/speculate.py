#!/usr/bin/env python3
"""What drafts from the conversation's own text gain: the same chats with and
without them, in turns, on one server.

  R=build/release/integration
  XCACHE_BUILD=build/release XCACHE_SOURCE_DIR=. \\
    PYTHONPATH=$R/stubs:tests/integration \\
    $R/venv/bin/python tests/bench/speculate.py MODEL --text build/eval_text/prose.txt

Forty chats quote or edit what was said (--set quote): to repeat a text, to mend one
whose letters were mixed up, to change a word of it, to go on from one that was
begun, to say an answer once more. Forty others ask for prose of the model's own
(--set prose). Each answer comes twice, who is first alternates, and both must have
the same ids and the same bits of log-probabilities; if they have not, that is told
and the exit code is 1. Prints tokens a second from the first token on, their ratio,
and how much of what was drafted came true.
"""

import argparse
import concurrent.futures
import json
import pathlib
import random
import re
import statistics
import sys
import tempfile
import time

from xcache.v1 import common_pb2
from xcache.v1 import inference_pb2

import harness

SUBJECTS = [
    "a lighthouse keeper", "the first day of school", "how bread is made",
    "a dog that got lost", "why the sky is blue", "an old clock",
    "a walk in the rain", "how bees live", "a letter from a sailor",
    "the history of paper", "a garden in spring", "how to learn a language",
    "a train at night", "what makes a good friend", "a small island",
    "how a bridge is built", "the sound of snow", "a market in the morning",
    "how rivers form", "a painter without colors", "the moon and the tides",
    "an honest thief", "how glass is made", "a chess game", "the last bus",
    "how birds find their way", "a recipe for soup", "an empty house",
    "how plants drink", "the oldest tree", "a lost key", "how music is written",
    "a storm at sea", "the invention of the wheel", "a quiet library",
    "how to mend a chair", "a fox in winter", "the color of honey",
    "how stars are born", "a birthday without a cake"]


def passages(text, count):
    """So many paragraphs of 300 to 600 bytes, from all of the text."""
    fit = [p.strip() for p in re.split(r"\n\s*\n", text)]
    fit = [p for p in fit if 300 <= len(p) <= 600]
    assert len(fit) >= count, f"only {len(fit)} paragraphs of that size"
    return [fit[i * len(fit) // count] for i in range(count)]


def misspelled(text, rng):
    """A letter of every tenth word or so in the wrong place."""
    words = text.split(" ")
    for i in range(rng.randrange(5), len(words), 10):
        word = words[i]
        if len(word) > 4:
            at = rng.randrange(1, len(word) - 2)
            words[i] = word[:at] + word[at + 1] + word[at] + word[at + 2:]
    return " ".join(words)


def common_word(text):
    words = re.findall(r"[a-z]{5,}", text)
    return max(sorted(set(words)), key=words.count)


def quoting(text):
    """Chats of messages, of which the last is to be answered."""
    rng = random.Random(1)
    chats = []
    for i, passage in enumerate(passages(text, 40)):
        said = harness.user
        if i % 5 == 0:
            chats.append([said(
                f"Repeat the following text word for word.\n\n{passage}")])
        elif i % 5 == 1:
            chats.append([said(
                "Correct the spelling of this text and write all of it again."
                f"\n\n{misspelled(passage, rng)}")])
        elif i % 5 == 2:
            word = common_word(passage)
            chats.append([said(
                f'Write this text again with "{word.upper()}" in place of '
                f'"{word}".\n\n{passage}')])
        elif i % 5 == 3:
            start = passage[:passage.index(" ", 40)]
            chats.append([said(
                f"Here is a text:\n\n{passage}\n\nWrite it out, from its first "
                f'words on, "{start}", to its end.')])
        else:
            chats.append([
                said("Tell me about this machine."),
                common_pb2.Message(role=common_pb2.ROLE_ASSISTANT,
                                   content=passage),
                said("Say that once more, exactly as you said it.")])
    return chats


def prose():
    return [[harness.user(f"Write a short text about {subject}.")]
            for subject in SUBJECTS]


class Sum:

    def __init__(self):
        self.tokens, self.seconds, self.drafted, self.accepted = 0, 0.0, 0, 0

    def rate(self):
        return self.tokens / self.seconds if self.seconds else 0


def measure(client, chats, temperature, tokens, batch):
    """Sums by mode, ratios by chat, and how many chats differ."""
    sums = {"off": Sum(), "ngram": Sum()}
    ratios, wrong = [], 0

    def ask(messages, mode, seed):
        answer = client.chat(messages=messages, params=harness.params(
            max_tokens=tokens, temperature=temperature, seed=seed, logprobs=1,
            speculate=mode))
        return answer

    with concurrent.futures.ThreadPoolExecutor(batch) as pool:
        for first in range(0, len(chats), batch):
            part = list(enumerate(chats))[first:first + batch]
            order = ["off", "ngram"]
            if first // batch % 2 == 1:
                order.reverse()
            answers, rates = {}, {}
            for mode in order:
                begin = time.perf_counter()
                answers[mode] = list(pool.map(
                    lambda each: ask(each[1], mode, each[0]), part))
                wall = time.perf_counter() - begin
                got = Sum()
                for answer in answers[mode]:
                    final = answer.final
                    got.tokens += final.generated_tokens - 1
                    got.seconds += final.timings.decode_us * 1e-6
                    got.drafted += final.drafted_tokens
                    got.accepted += final.accepted_tokens
                if batch > 1:  # together: what all of it took
                    got.seconds = wall
                rates[mode] = got.rate()
                total = sums[mode]
                for name, value in vars(got).items():
                    setattr(total, name, getattr(total, name) + value)
            wrong += sum(a.bits != b.bits for a, b in zip(
                answers["off"], answers["ngram"]))
            if rates["off"]:
                ratios.append(rates["ngram"] / rates["off"])
    return sums, ratios, wrong


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--text", type=pathlib.Path, required=True)
    parser.add_argument("--set", choices=["quote", "prose"], action="append")
    parser.add_argument("--temperature", type=float, action="append")
    parser.add_argument("--tokens", type=int, default=160, help="an answer's")
    parser.add_argument("--batch", type=int, default=1, help="chats at once")
    parser.add_argument("--chats", type=int, default=40)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    sets = {"quote": quoting(args.text.read_text()), "prose": prose()}
    differ = 0
    with tempfile.TemporaryDirectory() as folder, harness.Server(
            args.model, folder, store=None) as server:
        client = server.client()
        ask = {"messages": [harness.user("Hello.")],
               "params": harness.params(max_tokens=32)}
        client.chat(**ask)  # warms up
        for name in args.set or sets:
            for temperature in args.temperature or [0.0, 1.0]:
                sums, ratios, wrong = measure(
                    client, sets[name][:args.chats], temperature, args.tokens,
                    args.batch)
                off, ngram = sums["off"], sums["ngram"]
                differ += wrong
                row = {
                    "set": name, "temperature": temperature,
                    "batch": args.batch, "answers_that_differ": wrong,
                    "tokens": off.tokens,
                    "off_tokens_per_s": round(off.rate(), 1),
                    "ngram_tokens_per_s": round(ngram.rate(), 1),
                    "ratio": round(ngram.rate() / off.rate(), 3),
                    "median_ratio": round(statistics.median(ratios), 3),
                    "least_ratio": round(min(ratios), 3),
                    "drafted": ngram.drafted, "accepted": ngram.accepted}
                print(json.dumps(row) if args.json else " ".join(
                    f"{k}={v}" for k, v in row.items()), flush=True)
        server.stop()
    sys.exit(differ > 0)


if __name__ == "__main__":
    main()

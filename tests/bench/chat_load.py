#!/usr/bin/env python3
"""Conversations that come back, against any server: XCache over gRPC, or whoever
speaks OpenAI's HTTP API.

  R=build/release/integration
  XCACHE_BUILD=build/release XCACHE_SOURCE_DIR=. \\
    PYTHONPATH=$R/stubs:tests/integration \\
    $R/venv/bin/python tests/bench/chat_load.py --grpc 127.0.0.1:50051 \\
    --text build/eval_text/prose.txt --conversations 200 --returns 400

First each conversation begins: one of a few system prompts, a long message, a short
answer. Then they come back, popular ones oftener (Zipf), to as many clients at
once as there are; each thinks, says something short and reads the answer. One that
has grown to twice its length is replaced by a new one. Only what happens to those
that come back is counted. Over gRPC a conversation is a session; over HTTP its
messages are sent again.

Prints time to first token, time between tokens, tokens a second, the share of the
history that was reused, and the server's resident memory (--pid).
"""

import argparse
import collections
import dataclasses
import itertools
import json
import pathlib
import random
import re
import threading
import time

import grpc
import openai
from xcache.v1 import common_pb2
from xcache.v1 import inference_pb2
from xcache.v1 import sessions_pb2

import harness


@dataclasses.dataclass
class Turn:
    """What a client sees of one answer; times in seconds."""
    first: float  # from the request to the first token
    gaps: list    # between two deltas
    answer: str
    prompt_tokens: int
    answer_tokens: int
    reused: dict  # tokens by tier


@dataclasses.dataclass
class Conversation:
    number: int
    messages: list = dataclasses.field(default_factory=list)  # (role, text)
    tokens: int = 0


def timed(deltas):
    """The deltas' text, when the first came, and the times between them."""
    begin = last = time.perf_counter()
    first, gaps, text = None, [], []
    for delta in deltas:
        now = time.perf_counter()
        if first is None:
            first = now - begin
        else:
            gaps.append(now - last)
        last = now
        text.append(delta)
    return first, gaps, "".join(text)


class Grpc:

    def __init__(self, address, _):
        self.client = harness.Client(grpc.insecure_channel(
            address, [("grpc.use_local_subchannel_pool", 1),
                      ("grpc.enable_http_proxy", 0)]))

    def turn(self, conversation, answer_tokens):
        name = f"load-{conversation.number}"
        unsaid = [m for m in conversation.messages if m[0] != "system"][-1:]
        if conversation.tokens == 0:
            self.client.sessions.CreateSession(
                sessions_pb2.CreateSessionRequest(
                    id=name, system_prompt=conversation.messages[0][1]))
        finals = []

        def deltas():
            for response in self.client.inference.Chat(
                    inference_pb2.ChatRequest(
                        session_id=name,
                        messages=[harness.user(text) for _, text in unsaid],
                        params=harness.params(max_tokens=answer_tokens,
                                              ignore_eos=True))):
                if response.delta:
                    yield response.delta
                if response.HasField("final"):
                    finals.append(response.final)

        first, gaps, text = timed(deltas())
        final = finals[0]
        return Turn(first, gaps, text, final.prompt_tokens,
                    final.generated_tokens,
                    {tier.name: getattr(final.reused, tier.name)
                     for tier in common_pb2.ReusedTokens.DESCRIPTOR.fields})


class OpenAi:

    def __init__(self, url, model):
        self.client = openai.OpenAI(base_url=url, api_key="none", timeout=600,
                                    max_retries=0)
        self.model = model or self.client.models.list().data[0].id

    def turn(self, conversation, answer_tokens):
        usages = []

        def deltas():
            for chunk in self.client.chat.completions.create(
                    model=self.model, stream=True, temperature=0,
                    stream_options={"include_usage": True},
                    max_tokens=answer_tokens,
                    extra_body={"ignore_eos": True},
                    messages=[{"role": role, "content": text}
                              for role, text in conversation.messages]):
                if chunk.usage:
                    usages.append(chunk.usage)
                if chunk.choices and chunk.choices[0].delta.content:
                    yield chunk.choices[0].delta.content

        first, gaps, text = timed(deltas())
        details = usages[0].prompt_tokens_details
        return Turn(first, gaps, text, usages[0].prompt_tokens,
                    usages[0].completion_tokens,
                    {"cached": details.cached_tokens or 0 if details else 0})


class Texts:
    """Pieces of real text by the word, each from another place."""

    def __init__(self, paths):
        self.words = " ".join(pathlib.Path(path).read_text()
                              for path in paths).split(" ")

    def piece(self, number, words):
        begin = number * 7919 % (len(self.words) - words)
        return " ".join(self.words[begin:begin + words])


class Load:

    def __init__(self, connect, options):
        self.options = options
        self.texts = Texts(options.text)
        self.connect = connect
        self.random = random.Random(options.seed)
        self.numbers = itertools.count(options.first)
        self.lock = threading.Lock()
        self.problems = []
        self.turns = []  # of conversations that came back
        self.history = 0
        self.most_resident = 0

    def begin(self, client, slot):
        o = self.options
        conversation = Conversation(next(self.numbers))
        conversation.messages = [
            ("system", self.texts.piece(slot % o.system_prompts,
                                        o.system_words)),
            ("user", self.texts.piece(1000 + conversation.number,
                                      o.first_words))]
        self.take_turn(client, conversation)
        return conversation

    def take_turn(self, client, conversation):
        turn = client.turn(conversation, self.options.answer)
        conversation.messages.append(("assistant", turn.answer))
        conversation.tokens = turn.prompt_tokens + turn.answer_tokens
        return turn

    def go_on(self, client, slot):
        o = self.options
        conversation = self.conversations[slot]
        if conversation.tokens > 2 * self.begun[slot]:
            self.conversations[slot] = self.begin(client, slot)
            return
        history = conversation.tokens
        with self.lock:
            think = self.random.expovariate(1 / o.think) if o.think else 0
            piece = self.random.randrange(1 << 20)
        time.sleep(think)
        conversation.messages.append(
            ("user", self.texts.piece(piece, o.words)))
        turn = self.take_turn(client, conversation)
        with self.lock:
            self.turns.append(turn)
            self.history += history

    def each(self, slots, deed):
        """deed(client, slot) for each of them, by as many clients as there are;
        no slot is in two hands at once."""
        waiting = collections.deque(slots)
        busy = set()

        def take():
            with self.lock:
                for i, slot in enumerate(waiting):
                    if slot not in busy:
                        del waiting[i]
                        busy.add(slot)
                        return slot
                return None if not waiting else -1

        def work():
            try:
                client = self.connect()
                while not self.problems and (slot := take()) is not None:
                    if slot == -1:  # all that are left are busy
                        time.sleep(0.01)
                        continue
                    deed(client, slot)
                    busy.discard(slot)
            except Exception as error:  # raised below
                self.problems.append(error)

        workers = [threading.Thread(target=work)
                   for _ in range(self.options.clients)]
        for worker in workers:
            worker.start()
        while any(worker.is_alive() for worker in workers):
            self.look_at_memory()
            time.sleep(0.1)
        if self.problems:
            raise self.problems[0]

    def look_at_memory(self):
        if self.options.pid:
            status = pathlib.Path(f"/proc/{self.options.pid}/status")
            resident = int(re.search(r"VmRSS:\s+(\d+) kB",
                                     status.read_text())[1]) << 10
            self.most_resident = max(self.most_resident, resident)

    def run(self):
        o = self.options
        self.conversations = [None] * o.conversations

        def begin(client, slot):
            self.conversations[slot] = self.begin(client, slot)

        self.each(range(o.conversations), begin)
        self.begun = [c.tokens for c in self.conversations]
        slots = list(range(o.conversations))
        self.random.shuffle(slots)
        weights = [1 / (rank + 1) ** o.zipf for rank in range(len(slots))]
        start = time.perf_counter()
        self.each(self.random.choices(slots, weights, k=o.returns), self.go_on)
        return self.report(time.perf_counter() - start)

    def report(self, seconds):
        first = sorted(turn.first for turn in self.turns)
        gaps = sorted(gap for turn in self.turns for gap in turn.gaps)
        reused = collections.Counter()
        for turn in self.turns:
            reused.update(turn.reused)

        def ms(values, share):
            return round(1e3 * values[min(len(values) - 1,
                                          int(share * len(values)))], 1)

        return {
            "returns": len(self.turns),
            "tokens_each": round(sum(self.begun) / len(self.begun)),
            "ttft_ms": {f"p{p}": ms(first, p / 100) for p in (50, 95, 99)},
            "between_tokens_ms": {f"p{p}": ms(gaps, p / 100)
                                  for p in (50, 95, 99, 100)},
            "answer_tokens_per_s": round(
                sum(turn.answer_tokens for turn in self.turns) / seconds, 1),
            "history_tokens": self.history,
            "reused_share": round(sum(reused.values()) / self.history, 4),
            "reused_tokens": dict(reused),
            "resident_mib": self.most_resident >> 20,
        }


def add_options(p):
    p.add_argument("--text", action="append", required=True, metavar="FILE",
                   help="what is said is taken from these")
    p.add_argument("--conversations", type=int, default=200)
    p.add_argument("--returns", type=int, default=400)
    p.add_argument("--clients", type=int, default=8)
    p.add_argument("--zipf", type=float, default=1.0,
                   help="the k-th most popular comes back k^-ZIPF as often")
    p.add_argument("--think", type=float, default=0.5,
                   help="mean seconds before something is said")
    p.add_argument("--system-prompts", type=int, default=8)
    p.add_argument("--system-words", type=int, default=150)
    p.add_argument("--first-words", type=int, default=1200)
    p.add_argument("--words", type=int, default=30)
    p.add_argument("--answer", type=int, default=32, help="tokens")
    p.add_argument("--first", type=int, default=0,
                   help="number of the first conversation: another each time")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--pid", type=int, default=0, help="of the server")


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    where = p.add_mutually_exclusive_group(required=True)
    where.add_argument("--grpc", metavar="HOST:PORT")
    where.add_argument("--openai", metavar="URL", help="ends in /v1")
    p.add_argument("--model", help="of the HTTP API; else the first it lists")
    add_options(p)
    o = p.parse_args()
    connect = (lambda: Grpc(o.grpc, o.model)) if o.grpc else (
        lambda: OpenAi(o.openai, o.model))
    print(json.dumps(Load(connect, o).run(), indent=1))


if __name__ == "__main__":
    main()

"""One long system prompt under many first turns at once. No tests here."""

import threading

from xcache.v1 import sessions_pb2 as spb

import harness
from harness import params

CHATS = 64
BLOCK = 64
ANSWER_TOKENS = 8


def system_prompt(client, tokens):
    """About `tokens` tokens, rendered, such that what follows the last full
    block leaves room in one block for a question and its answer."""
    text = "You are the help desk of a large library."
    number = 0
    while True:
        number += 1
        longer = f"{text} Rule {number} is about shelf {number * 7 % 101}."
        count = client.count_tokens([harness.system(longer)], False)
        if count >= tokens and count % BLOCK < 8:
            return longer, count
        assert count < tokens + 5000, "no length fits"
        text = longer


def chat_all(clients, prompt, prefix):
    """All first turns at once; returns their answers."""
    answers = [None] * CHATS
    problems = []
    together = threading.Barrier(CHATS)

    def one(i):
        try:
            client = clients[i % len(clients)]
            name = f"{prefix}{i}"
            client.sessions.CreateSession(spb.CreateSessionRequest(
                id=name, system_prompt=prompt))
            together.wait()
            answers[i] = client.chat(name, f"{i}?", params=params(
                max_tokens=ANSWER_TOKENS, ignore_eos=True, logprobs=1))
        except Exception as error:  # shown by the caller
            together.abort()
            problems.append(error)

    threads = [threading.Thread(target=one, args=[i]) for i in range(CHATS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems, problems[0]
    return answers

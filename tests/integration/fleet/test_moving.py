"""What a conversation's move to another server costs: no more bytes than its
pages have, and far less time than to compute it again. And a prompt that many
conversations share is in the store once."""

import statistics

import pytest
from xcache.v1 import sessions_pb2 as spb

import harness
from fleet import Fleet
from harness import params
from shared_prompts import ANSWER_TOKENS, BLOCK, chat_all, system_prompt
from talks import connect

PAGES = r"/pages/"
# Bytes in front of each page, which count where a model is tiny.
ENVELOPE = 88


def all_pages_pushed(fleet):
    """Once the bucket has been as it is for a second."""
    seen = [fleet.objects()]

    def steady():
        seen.append(fleet.objects())
        return len(seen) > 5 and all(s == seen[-1] for s in seen[-5:])

    while not steady():
        harness.time.sleep(0.25)
    return {key: size for key, size in seen[-1].items()
            if key.startswith("pages/")}


def chat_until(client, name, tokens):
    """Turns until the session has about so many tokens."""
    client.sessions.CreateSession(spb.CreateSessionRequest(
        id=name, system_prompt="You are the help desk of a library."))
    have, number = 0, 0
    while have < tokens:
        number += 1
        answer = client.chat(
            name, f"Shelf {number}: " + "a word about its books, and " * 8,
            params=params(max_tokens=16, ignore_eos=True))
        have = answer.final.prompt_tokens + answer.final.generated_tokens
    return have


def run_move(model, folder, store, tokens, rounds):
    """(time of a resume on a server that has nothing, time of computing it
    anew, page bytes downloaded, page bytes)"""
    with Fleet(model, folder, store=store, balanced=False,
               proxied=True) as fleet:
        maker = fleet.add()
        client = connect(maker.address)
        tokens = chat_until(client, "moves", tokens)
        pages = all_pages_pushed(fleet)
        stored = client.sessions.GetSession(
            spb.GetSessionRequest(id="moves")).page_bytes
        resumed, anew = [], []
        for _ in range(rounds):
            mover = fleet.add()
            there = connect(mover.address)
            for name in ("cold", "warm"):
                there.sessions.ForkSession(
                    spb.ForkSessionRequest(id="moves", new_id=f"{name}-"
                                           f"{mover.name}"))
            ask = dict(messages="What now?")
            slow = there.chat(f"cold-{mover.name}", params=params(
                max_tokens=4, ignore_eos=True, logprobs=1, no_cache=True),
                **ask)
            assert slow.reused == 0
            seen = len(fleet.proxies[mover.name].exchanges)
            fast = there.chat(f"warm-{mover.name}", params=params(
                max_tokens=4, ignore_eos=True, logprobs=1), **ask)
            assert fast.bits == slow.bits
            remote = fast.final.reused.remote
            blocks = tokens // BLOCK
            assert remote >= 0.95 * blocks * BLOCK, fast.final
            resumed.append(fast.final.timings.ttft_us / 1e6)
            anew.append(slow.final.timings.ttft_us / 1e6)
            downloaded = fleet.proxies[mover.name].downloaded(PAGES)
            mover.drain()
        requests = [e for e in fleet.proxies[mover.name].exchanges[seen:]
                    if e.method == "GET" and "/pages/" in e.target]
        print(f"\n{tokens} tokens, {len(pages)} objects of pages, "
              f"{sum(pages.values())} bytes; of the session {stored}; "
              f"{downloaded} bytes in {len(requests)} requests; resumed in "
              f"{statistics.median(resumed) * 1000:.0f} ms, computed in "
              f"{statistics.median(anew) * 1000:.0f} ms: "
              f"{statistics.median(anew) / statistics.median(resumed):.1f} "
              f"times")
        more = ENVELOPE * len(requests)
        assert stored * 0.98 <= downloaded - more <= stored * 1.02, (
            f"{downloaded} bytes downloaded for {stored} bytes of pages")
        return statistics.median(anew) / statistics.median(resumed)


def run_prompt(model, folder, store):
    with Fleet(model, folder, store=store, balanced=False,
               ) as fleet:
        clients = [connect(fleet.add().address) for _ in range(3)]
        prompt, count = system_prompt(clients[0], 1000)
        blocks = count // BLOCK
        # One conversation tells how large the prompt's pages are.
        clients[0].sessions.CreateSession(spb.CreateSessionRequest(
            id="first", system_prompt=prompt))
        clients[0].chat("first", "7?", params=params(
            max_tokens=ANSWER_TOKENS, ignore_eos=True))
        once = all_pages_pushed(fleet)
        assert once
        page_bytes = clients[0].sessions.GetSession(
            spb.GetSessionRequest(id="first")).page_bytes
        assert sum(once.values()) == page_bytes + ENVELOPE * len(once)
        answers = chat_all(clients, prompt, "a")
        assert max(a.final.prompt_tokens for a in answers) + ANSWER_TOKENS < (
            blocks + 1) * BLOCK
        assert all_pages_pushed(fleet) == once
        # And all of it anew, in a fleet where nobody was first.
    with Fleet(model, folder / "anew", store=store, balanced=False) as fleet:
        clients = [connect(fleet.add().address) for _ in range(3)]
        chat_all(clients, prompt, "a")
        found = all_pages_pushed(fleet)
        print(f"\n64 sessions on 3 servers: {len(found)} objects of pages, "
              f"{sum(found.values())} bytes; of one session {len(once)}, "
              f"{sum(once.values())}")
        assert sum(found.values()) == sum(once.values())


def test_a_session_moves(tiny_model, tmp_path, store):
    run_move(tiny_model, tmp_path, store, 3000, rounds=1)


def test_64_sessions_store_their_prompt_once(tiny_model, tmp_path, store):
    run_prompt(tiny_model, tmp_path, store)


@pytest.mark.model
def test_a_move_costs_a_tenth_of_computing(real_model, tmp_path, store):
    rounds = int(harness.campaign("FLEET_MOVE_ROUNDS", 1))
    ratio = run_move(real_model, tmp_path, store, 4000, rounds)
    # A machine that does other things as well is no place to measure.
    if rounds > 1:
        assert ratio >= 10


@pytest.mark.model
def test_the_real_models_prompt_is_stored_once(real_model, tmp_path, store):
    run_prompt(real_model, tmp_path, store)

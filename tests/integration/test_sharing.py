"""Many first turns at once share one long system prompt: each of its full
blocks is prefilled once and stored once. Another tenant shares nothing."""

import pytest
from xcache.v1 import sessions_pb2 as spb

import harness
from harness import params
from shared_prompts import (ANSWER_TOKENS, BLOCK, CHATS, chat_all,
                            system_prompt)


def run(model, folder):
    tokens_file = folder / "tokens"
    tokens_file.write_text("one-secret one\ntwo-secret two\n")
    tokens_file.chmod(0o600)
    with harness.Server(model, folder, "--token-file", tokens_file) as server:
        clients = [server.client("one-secret") for _ in range(8)]
        prompt, count = system_prompt(clients[0], 1000)
        blocks = count // BLOCK
        before = server.metrics()

        def since(name, **labels):
            return server.metrics().sum(name, **labels) - before.sum(
                name, **labels)

        answers = chat_all(clients, prompt, "a")
        longest = max(a.final.prompt_tokens for a in answers)
        assert longest + ANSWER_TOKENS < (blocks + 1) * BLOCK, (
            "the test's own arithmetic: a chat filled a block of its own")
        # Sealed once: of 64 chats, as many pages as the prompt has blocks.
        assert since("xcache_seals_total") == blocks
        client = clients[0]
        for i in range(CHATS):
            client.sessions.FlushSession(spb.FlushSessionRequest(id=f"a{i}"))
        assert server.metrics().sum("xcache_pages", tier="disk") == blocks
        # Prefilled once: one chat computes the blocks, the others compute what
        # is theirs, and the sinks, which are never stored.
        shared = blocks * BLOCK
        own = sum(a.final.prompt_tokens - shared for a in answers)
        prefilled = sum(a.final.prefilled_tokens for a in answers)
        assert prefilled == since("xcache_prefilled_tokens_total")
        assert shared + own <= prefilled <= shared + own + 4 * CHATS
        # And the metrics show the reuse.
        reused = sum(a.reused for a in answers)
        assert reused == since("xcache_reused_tokens_total")
        assert reused + prefilled == sum(
            a.final.prompt_tokens for a in answers)
        assert reused >= (CHATS - 1) * (shared - 4)
        assert since("xcache_corrupt_pages_total") == 0
        assert since("xcache_mismatched_pages_total") == 0
        # Shared or alone, a chat's answer is the same.
        alone = client.chat(
            messages=[harness.system(prompt), harness.user("7?")],
            params=params(max_tokens=ANSWER_TOKENS, ignore_eos=True,
                          logprobs=1, no_cache=True))
        assert alone.bits == answers[7].bits

        # The other tenant's very same prompt: everything is its own.
        sealed = since("xcache_seals_total")
        stranger = server.client("two-secret")
        stranger.sessions.CreateSession(spb.CreateSessionRequest(
            id="b", system_prompt=prompt))
        first = stranger.chat("b", "7?", params=params(
            max_tokens=ANSWER_TOKENS, ignore_eos=True, logprobs=1))
        assert first.reused == 0
        assert first.bits == answers[7].bits
        assert since("xcache_seals_total") - sealed == blocks
        stranger.sessions.FlushSession(spb.FlushSessionRequest(id="b"))
        assert server.metrics().sum("xcache_pages", tier="disk") == 2 * blocks
        server.stop()


def test_64_first_turns_share_a_prompt(medium_model, tmp_path):
    run(medium_model, tmp_path)


@pytest.mark.model
def test_the_same_with_the_real_model(real_model, tmp_path):
    run(real_model, tmp_path)

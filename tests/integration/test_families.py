"""The model families beside llama: long conversations that a kill ends go on with
the bits of those that are computed from nothing, with every codec.

XCACHE_GEMMA_MODEL names Gemma 3 270M (deploy/get_model.sh --gemma), whose
conversations are of 4,000 tokens."""

import os
import random

import pytest
from xcache.v1 import sessions_pb2 as spb

import harness
from conversations import Conversation
from harness import params
from model_fixtures import make_model

CODECS = ("kv-fp16", "kivi:bits=4", "kivi:bits=2", "xquant:bits=4",
          "xquant-cl:bits=3", "xquant-gqa:bits=4", "xquant-gqa:bits=2",
          "xquant-cl-gqa:bits=4", "xquant-cl-gqa:bits=2",
          "xquant-gqa:bits=4,preset=plain", "xquant-cl-gqa:bits=3,preset=plain")
WORDS = ("apple river stone cloud lamp paper seven green never after window "
         "music train bread quiet north").split()


def go_on_after_a_kill(model, folder, num_words, *flags):
    rng = random.Random(7)
    conversations = [
        Conversation(f"talk-{i}", " ".join(rng.choices(WORDS, k=num_words)),
                     codec) for i, codec in enumerate(CODECS)]
    with harness.Server(model, folder, *flags) as server:
        client = server.client()
        for conversation in conversations:
            conversation.create(client)
            conversation.ask(client, "Which words do you know?",
                             params(max_tokens=70, ignore_eos=True))
            # Pages are written behind the turn.
            client.sessions.FlushSession(
                spb.FlushSessionRequest(id=conversation.name))
        server.kill()
    with harness.Server(model, folder, *flags) as server:
        client = server.client()
        for conversation in conversations:
            assert conversation.check_after_crash(client)
            reused = conversation.check_answer(client)
            assert reused >= conversation.tokens - 64
            print(f"{conversation.codec}: of {conversation.tokens} tokens "
                  f"{reused} reused")


@pytest.mark.parametrize("family", ("qwen2", "qwen3", "gemma3"))
def test_conversations_go_on_after_a_kill(family, models, tmp_path):
    model = make_model(models / f"{family}.gguf", f"arch={family}", "layers=4",
                       "context=4096")
    go_on_after_a_kill(model, tmp_path, 400)


def test_gemma_goes_on_after_a_kill(tmp_path):
    if "XCACHE_GEMMA_MODEL" not in os.environ:
        pytest.skip("XCACHE_GEMMA_MODEL is not set")
    go_on_after_a_kill(os.environ["XCACHE_GEMMA_MODEL"], tmp_path, 4000,
                       "--chat-template", "gemma")

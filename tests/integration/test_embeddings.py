"""Embeddings over the HTTP API with OpenAI's own client: against llama.cpp's on a
real model, and what a request may be."""

import base64
import concurrent.futures
import json
import math
import pathlib
import struct

import openai
import pytest
from xcache.v1 import inference_pb2 as pb

import harness
from openai_fixtures import HTTP, ai, ask, client_of, server  # noqa: F401

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"


def embed(ai, text, **more):
    return ai.embeddings.create(model="tiny", input=text, **more)


def vector(ai, text, **more):
    return embed(ai, text, **more).data[0].embedding


def length(values):
    return math.sqrt(sum(x * x for x in values))


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b)) / length(a) / length(b)


def test_real_vectors_are_llama_cpps(real_model, tmp_path):
    golden = json.loads((GOLDEN / "embeddings_smollm2.json").read_text())
    text = (GOLDEN / "logits_text.txt").read_bytes()
    texts = [text[:n].decode(errors="ignore") for n in golden["lengths"]]
    with harness.Server(real_model, tmp_path, *HTTP) as server:
        ai = client_of(server)
        for pooling in ("mean", "last"):
            answer = ai.embeddings.create(
                model=None, input=texts, extra_body={"pooling": pooling})
            for mine, theirs in zip(answer.data, golden[pooling]):
                raw = base64.b64decode(theirs)
                theirs = struct.unpack(f"<{len(raw) // 2}e", raw)
                assert len(theirs) == len(mine.embedding)
                same = cosine(mine.embedding, theirs)
                print(pooling, mine.index, same)
                # Theirs rounds activations to 8 bits.
                assert same > 0.999, (pooling, mine.index)


def test_what_an_answer_is(ai):
    answer = embed(ai, ["One.", "Two, three.", "One."])
    assert answer.object == "list" and answer.model == "tiny"
    assert [item.index for item in answer.data] == [0, 1, 2]
    assert all(item.object == "embedding" for item in answer.data)
    one, two, again = (item.embedding for item in answer.data)
    assert one == again != two
    assert length(one) == pytest.approx(1, abs=1e-5)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 6
    # Alone it is what it is among others.
    assert vector(ai, "One.") == one
    assert vector(ai, "One.", extra_body={"pooling": "last"}) != one
    assert vector(ai, "One.", extra_body={"pooling": "mean"}) == one


def test_numbers_and_base64_are_the_same(ai):
    # The client asks for base64 where it is not told.
    packed = vector(ai, "Tell me of the sea.")
    numbers = vector(ai, "Tell me of the sea.", encoding_format="float")
    assert [struct.unpack("<f", struct.pack("<f", x))[0] for x in numbers] == (
        list(packed))
    text = vector(ai, "Tell me of the sea.", encoding_format="base64")
    raw = base64.b64decode(text)
    assert list(struct.unpack(f"<{len(raw) // 4}f", raw)) == list(packed)


def test_token_ids_are_the_text_that_they_spell(ai, client):
    text = "Tell me of the sea. " * 20
    tokens, with_bos = (list(client.inference.Tokenize(
        pb.TokenizeRequest(text=text, add_bos=add_bos)).token_ids)
        for add_bos in (False, True))
    count = embed(ai, text).usage.prompt_tokens
    given = tokens if count == len(tokens) else with_bos
    assert len(given) == count > 128
    assert vector(ai, given) == vector(ai, text)
    assert [item.embedding for item in embed(ai, [given, given[:70]]).data] == [
        vector(ai, given), vector(ai, given[:70])]


def test_mean_is_of_all_tokens_and_last_of_one(ai):
    """By a way of its own: the mean is that of each prefix's last row."""
    tokens = list(range(40, 40 + 130))
    lasts = [item.embedding for item in embed(
        ai, [tokens[:n + 1] for n in range(len(tokens))],
        extra_body={"pooling": "last"}).data]
    assert len(lasts) == 130
    # Rows are not of unit length, but nearly of one: behind a norm.
    mean = [sum(row) / len(lasts) for row in zip(*lasts)]
    assert cosine(mean, vector(ai, tokens)) > 0.999


def test_dimensions_are_the_first_of_unit_length(ai):
    whole = vector(ai, "One.")
    part = vector(ai, "One.", dimensions=5)
    assert len(part) == 5 and length(part) == pytest.approx(1, abs=1e-5)
    assert cosine(part, whole[:5]) == pytest.approx(1, abs=1e-6)


def test_many_texts_beside_chats(server, ai):
    texts = [f"Text {i} of many. " * (1 + i % 40) for i in range(300)]
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        batch = pool.submit(embed, ai, texts)
        chat = pool.submit(ask, ai)
        other = pool.submit(embed, ai, texts[::-1])
        assert chat.result().choices[0].message.content
        vectors = [item.embedding for item in batch.result().data]
        assert vectors[::-1] == [item.embedding for item in other.result().data]
    for i in (0, 77, 299):
        assert vectors[i] == vector(ai, texts[i])
    lines = [line for line in server.log().splitlines()
             if "method=Embeddings" in line]
    assert f"prompt_tokens={batch.result().usage.prompt_tokens}" in "".join(
        lines)


def test_nothing_of_it_is_kept(server, ai):
    text = "The tide comes in and goes out again. " * 20
    embed(ai, text)
    answer = ask(ai, text)
    assert answer.usage.prompt_tokens_details.cached_tokens == 0


@pytest.mark.parametrize("body, param", [
    ({}, "input"), ({"input": ""}, "input"), ({"input": []}, "input"),
    ({"input": ["a", ""]}, "input[1]"), ({"input": [[1], []]}, "input[1]"),
    ({"input": [1, -1]}, "input[1]"), ({"input": [1, "a"]}, "input[1]"),
    ({"input": ["a", 1]}, "input[1]"), ({"input": {"a": 1}}, "input"),
    ({"input": ["a"] * 2049}, "input"),
    ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
    ({"input": "a", "dimensions": 0}, "dimensions"),
    ({"input": "a", "dimensions": 100000}, "dimensions"),
    ({"input": "a", "pooling": "max"}, "pooling"),
    ({"input": "a", "model": 5}, "model"),
])
def test_what_is_wrong_is_said(ai, body, param):
    with pytest.raises(openai.BadRequestError) as caught:
        ai.post("/embeddings", body=body, cast_to=object)
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"


def test_other_refusals(ai, server):
    with pytest.raises(openai.NotFoundError) as caught:
        ai.embeddings.create(model="other", input="a")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as caught:
        embed(ai, ["a", "word " * 5000, "b"])
    assert caught.value.code == "context_length_exceeded"
    # All is given back.
    harness.wait_until(lambda: server.metrics().sum(
        "xcache_requests_running") == 0)
    assert vector(ai, "a")


def test_a_client_that_goes_away_ends_it(slow_model, tmp_path):
    with harness.Server(slow_model, tmp_path, *HTTP) as server:
        ai = client_of(server).with_options(timeout=0.5)
        with pytest.raises(openai.APITimeoutError):
            ai.embeddings.create(model="slow", input=["word " * 2000] * 20)
        harness.wait_until(lambda: "code=CANCELLED" in server.log(), 60)
        harness.wait_until(lambda: server.metrics().sum(
            "xcache_requests_running") == 0)


def test_a_tenant_with_few_requests_gets_them_one_by_one(tiny_model, tmp_path):
    (tmp_path / "tokens").write_text(
        "a-token-of-one one\ntenant one requests=2\n")
    (tmp_path / "tokens").chmod(0o600)
    with harness.Server(tiny_model, tmp_path, *HTTP, "--token-file",
                        tmp_path / "tokens") as server:
        ai = client_of(server, "a-token-of-one")
        assert len(embed(ai, [f"Text {i}" for i in range(40)]).data) == 40

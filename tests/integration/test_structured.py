"""Answers that are held to a format, over both doors, at temperature 1: whatever
ends by the end token is what was asked for."""

import concurrent.futures
import json
import re

import grpc
import jsonschema
import openai
import pydantic
import pytest
from xcache.v1 import inference_pb2 as pb
from xcache.v1 import sessions_pb2 as spb

import harness
import schemas
from harness import campaign, params
from openai_fixtures import HTTP, ai, ask, client_of, server  # noqa: F401

# 20 by default, 200 for a campaign.
COUNT = int(campaign("SCHEMAS", 20))


def json_schema(schema, name="answer"):
    return {"type": "json_schema",
            "json_schema": {"name": name, "strict": True, "schema": schema}}


def mean_seconds(metrics, name):
    return metrics.sum(f"{name}_sum") / max(1, metrics.sum(f"{name}_count"))


@pytest.mark.timeout(3600)
def test_answers_keep_to_their_schemas(real_model, seed, tmp_path):
    """The issue's measure: each answer that ends by the end token validates."""
    asked = schemas.some(COUNT, seed)
    ended, cut, refused = 0, 0, []
    with harness.Server(real_model, tmp_path, *HTTP) as server:
        ai = client_of(server)

        def answer(i):
            try:
                return ask(ai, "Invent one, as JSON.", model=None,
                           temperature=1, seed=seed + i, max_tokens=200,
                           response_format=json_schema(asked[i])).choices[0]
            except openai.BadRequestError as error:
                return error

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            for i, choice in enumerate(pool.map(answer, range(len(asked)))):
                if isinstance(choice, Exception):
                    refused.append((asked[i], str(choice)))
                    continue
                if choice.finish_reason != "stop":
                    cut += 1
                    continue
                ended += 1
                jsonschema.validate(json.loads(choice.message.content),
                                    asked[i],
                                    jsonschema.Draft202012Validator)
        metrics = server.metrics()
        compiled = mean_seconds(metrics, "xcache_grammar_compile_seconds")
        mask = mean_seconds(metrics, "xcache_grammar_mask_seconds")
        client = server.client()

        def token_us(**more):
            final = client.chat(
                messages="Tell me of the sea.",
                params=params(max_tokens=100, temperature=1, seed=1,
                              **more)).final
            return final.timings.decode_us / max(1, final.generated_tokens - 1)

        schema = pb.ResponseFormat(json_schema=json.dumps(
            {"type": "array", "minItems": 90, "items": {"type": "integer"}}))
        token_us(response_format=schema)  # compiled, and loaded
        free = min(token_us() for _ in range(3))
        held = min(token_us(response_format=schema) for _ in range(3))
    print(f"{len(asked)} schemas: {ended} answers ended and validate, {cut} were "
          f"cut at their length, {len(refused)} refused; a compilation took "
          f"{1e3 * compiled:.1f} ms, a token's mask {1e6 * mask:.0f} us; a token "
          f"took {free:.0f} us, held to a schema {held:.0f} us: "
          f"{held / free - 1:+.1%}")
    assert not refused
    assert ended > 0


SEA = {"type": "object",
       "properties": {"zeal": {"type": "boolean"},
                      "area": {"enum": ["n", "\u00fc\u65e5"]}},
       "required": ["zeal", "area"], "additionalProperties": False}


def hot(ai, **more):
    """The tiny model's weights are random: nothing but the format makes sense."""
    return ask(ai, **{"temperature": 1, "max_tokens": 300, **more})


def test_schema_over_http(ai):
    for seed in range(5):
        choice = hot(ai, seed=seed,
                     response_format=json_schema(SEA)).choices[0]
        assert choice.finish_reason == "stop"
        answer = json.loads(choice.message.content)
        jsonschema.validate(answer, SEA)
        assert list(answer) == ["zeal", "area"], "the schema's order"


def test_schema_over_grpc_is_the_same(ai, client):
    form = pb.ResponseFormat(json_schema=json.dumps(SEA))
    for seed in range(3):
        there = hot(ai, seed=seed, response_format=json_schema(SEA))
        here = client.chat(messages="Tell me of the sea.",
                           params=params(max_tokens=300, temperature=1,
                                         seed=seed, response_format=form))
        assert here.text == there.choices[0].message.content
        assert here.final.finish_reason == pb.FINISH_REASON_END


def test_each_kind_of_format(ai, client):
    def say(**form):
        return client.chat(messages="go", params=params(
            max_tokens=300, temperature=1,
            response_format=pb.ResponseFormat(**form))).text

    assert re.fullmatch(r"[a-c]{5}-\d", say(regex=r"[a-c]{5}-\d"))
    choice = pb.Choice(texts=["yes", "no \u00fc\"\n"])
    assert say(choice=choice) in choice.texts
    extra = [
        ({"guided_regex": "[ab]{3}"}, lambda text: re.fullmatch("[ab]{3}", text)),
        ({"guided_choice": ["left", "right"]},
         lambda text: text in ("left", "right")),
        ({"guided_json": SEA}, json.loads),
        ({"guided_json": json.dumps(SEA)}, json.loads),
        ({"structured_outputs": {"json": SEA}}, json.loads),
        ({"structured_outputs": {"regex": "x{4}"}}, lambda text: text == "xxxx"),
        ({"structured_outputs": {"choice": ["a"]}}, lambda text: text == "a"),
    ]
    for body, is_right in extra:
        text = hot(ai, extra_body=body).choices[0].message.content
        assert is_right(text), (body, text)
    # Its length is the model's, which has no sense of an end.
    text = hot(ai, response_format={"type": "json_object"}
               ).choices[0].message.content
    assert text.lstrip().startswith("{")
    completion = ai.completions.create(
        model="tiny", prompt="a", max_tokens=50, temperature=1,
        extra_body={"guided_regex": "[0-9]{2}"})
    assert re.fullmatch("[0-9]{2}", completion.choices[0].text)


def test_stream_choices_and_logprobs(ai):
    chunks = list(hot(ai, response_format=json_schema(SEA), stream=True, n=3,
                      seed=5, logprobs=True, top_logprobs=2))
    texts = ["", "", ""]
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    for i, text in enumerate(texts):
        jsonschema.validate(json.loads(text), SEA)
        alone = hot(ai, response_format=json_schema(SEA), seed=5 + i)
        assert alone.choices[0].message.content == text
    # They are the model's own, of which the format allows few tokens.
    content = [t for chunk in chunks for choice in chunk.choices
               if choice.logprobs for t in choice.logprobs.content]
    assert any(all(t.logprob < top.logprob for top in t.top_logprobs)
               for t in content)


def test_stop_strings_and_length_still_hold(ai):
    whole = hot(ai, response_format=json_schema(SEA), seed=1)
    text = whole.choices[0].message.content
    stopped = hot(ai, response_format=json_schema(SEA), seed=1, stop=["area"])
    assert stopped.choices[0].message.content == text[:text.index("area")]
    assert stopped.choices[0].finish_reason == "stop"
    cut = hot(ai, response_format=json_schema(SEA), seed=1, max_tokens=4)
    assert cut.choices[0].finish_reason == "length"
    assert text.startswith(cut.choices[0].message.content)


def test_a_session_goes_on_after_a_format(client):
    """Its history is the answer's tokens, and no format stays."""
    form = pb.ResponseFormat(json_schema=json.dumps(SEA))
    client.sessions.CreateSession(spb.CreateSessionRequest(id="held"))
    first = client.chat("held", "a record", params=params(
        max_tokens=300, temperature=1, response_format=form))
    second = client.chat("held", "and now?", params=params(max_tokens=8))
    session = client.sessions.GetSession(
        spb.GetSessionRequest(id="held", with_messages=True))
    assert [m.content for m in session.messages[-4:]] == [
        "a record", first.text, "and now?", second.text]


def test_parse(ai):
    class Sea(pydantic.BaseModel):
        name: bool
        depth: int = pydantic.Field(ge=0, le=99)
        kind: None

    answer = ai.chat.completions.parse(
        model="tiny", messages=[{"role": "user", "content": "a sea"}],
        response_format=Sea, temperature=1, max_tokens=300)
    assert 0 <= answer.choices[0].message.parsed.depth <= 99

    response = ai.responses.parse(
        model="tiny", input="a sea", text_format=Sea, temperature=1,
        max_output_tokens=300)
    assert 0 <= response.output_parsed.depth <= 99
    assert response.text.format.type == "json_schema"
    stored = ai.responses.retrieve(response.id)
    assert stored.text.format.schema_ == response.text.format.schema_
    assert stored.output_text == response.output_text


def nested(levels):
    schema = {"type": "boolean"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema, "maxItems": 1}
    return schema


@pytest.mark.parametrize("body, param", [
    ({"response_format": {"type": "yaml"}}, "response_format"),
    ({"response_format": "json"}, "response_format"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
     "response_format.json_schema.schema"),
    ({"response_format": json_schema(nested(70))}, None),
    ({"response_format": json_schema({"enum": ["x" * 70_000]})},
     "response_format"),
    ({"response_format": json_schema({"enum": list(range(5000))})},
     "response_format"),
    ({"response_format": json_schema({"not": {"type": "string"}})},
     "response_format"),
    ({"response_format": json_schema({"type": "array", "uniqueItems": True})},
     "response_format"),
    ({"response_format": json_schema({"type": "nonsense"})}, None),
    ({"response_format": json_schema({"$ref": "#/$defs/none"})}, None),
    ({"guided_regex": "("}, None),
    ({"guided_regex": "(a{100}){100}"}, "guided_regex"),
    ({"guided_regex": "([a-z]?){0,500}"}, "guided_regex"),
    ({"guided_regex": 5}, "guided_regex"),
    ({"guided_choice": []}, "guided_choice"),
    ({"guided_choice": ["a", 5]}, "guided_choice[1]"),
    ({"guided_grammar": "root ::= 'a'"}, "guided_grammar"),
    ({"guided_regex": "a", "guided_json": {}}, "guided_regex"),
    ({"guided_regex": "a", "ignore_eos": True}, None),
    ({"guided_regex": "a", "response_format": {"type": "json_object"}},
     "guided_regex"),
], ids=str)
def test_what_cannot_be_held_to_is_400(ai, body, param):
    with pytest.raises(openai.BadRequestError) as caught:
        hot(ai, extra_body=body)
    assert caught.value.type == "invalid_request_error"
    if param is not None:
        assert caught.value.param == param
    assert hot(ai, max_tokens=2).choices[0].message.content is not None


def test_refusals_over_grpc(client):
    for form in (pb.ResponseFormat(json_schema="{"),
                 pb.ResponseFormat(json_schema='{"type": "nonsense"}'),
                 pb.ResponseFormat(regex=""), pb.ResponseFormat(regex="(")):
        with pytest.raises(grpc.RpcError) as caught:
            client.chat(messages="go", params=params(response_format=form))
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT

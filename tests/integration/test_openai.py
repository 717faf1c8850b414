"""OpenAI's own Python client, unchanged, against the HTTP API."""

import base64
import concurrent.futures
import json
import math
import re
import subprocess
import threading
import time

import openai
import pytest
from xcache.v1 import inference_pb2 as pb

import harness
from harness import params, wait_until
from openai_fixtures import HTTP, ai, ask, client_of, server  # noqa: F401
from test_operation import make_certificate


def ask_without_end(ai, **more):
    """For seconds on any machine, if nobody ends it."""
    return ask(ai, "go on", model="slow", max_tokens=5000,
               extra_body={"ignore_eos": True}, **more)


def test_64_streams_at_once(ai):
    """Each is whole, and what it is alone."""
    def text_of(number):
        return "".join(chunk.choices[0].delta.content or "" for chunk in ask(
            ai, f"Tell me of {number} seas.", stream=True, max_tokens=24))

    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        together = list(pool.map(text_of, range(64)))
    assert together[:4] == [text_of(i) for i in range(4)]
    assert all(together)


def test_models(ai):
    assert [model.id for model in ai.models.list()] == ["tiny"]
    assert ai.models.retrieve("tiny").owned_by == "xcache"
    with pytest.raises(openai.NotFoundError) as caught:
        ai.models.retrieve("gpt-none")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        ask(ai, model="gpt-none")


def test_chat_is_what_grpc_answers(server, ai, client):
    """Text, tokens and log-probabilities are those of the other door."""
    answer = ask(ai, logprobs=True, top_logprobs=3)
    other = client.chat(messages="Tell me of the sea.",
                        params=params(max_tokens=12, logprobs=4))
    choice = answer.choices[0]
    assert choice.message.content == other.text
    assert choice.message.role == "assistant"
    assert choice.finish_reason in ("stop", "length")
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert abs(answer.created - time.time()) < 3600
    assert answer.usage.prompt_tokens == other.final.prompt_tokens
    assert answer.usage.completion_tokens == other.final.generated_tokens
    assert answer.usage.total_tokens == (answer.usage.prompt_tokens +
                                         answer.usage.completion_tokens)
    content = choice.logprobs.content
    theirs = other.tokens[:len(content)]
    assert [bytes(t.bytes) for t in content] == [t.token for t in theirs]
    for mine, token in zip(content, theirs):
        assert mine.logprob == pytest.approx(token.logprob, abs=1e-6)
        assert len(mine.top_logprobs) == 3
        assert mine.top_logprobs[0].logprob == pytest.approx(
            token.top[0].logprob, abs=1e-6)
    assert b"".join(bytes(t.bytes) for t in content).decode(
        errors="replace") == choice.message.content


def test_a_stream_is_the_whole_answer_in_parts(ai):
    whole = ask(ai, logprobs=True)
    chunks = list(ask(ai, stream=True, logprobs=True,
                      stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or ""
                   for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    tokens = [t.token for c in chunks
              if c.choices and c.choices[0].logprobs
              for t in c.choices[0].logprobs.content]
    assert tokens == [t.token for t in whole.choices[0].logprobs.content]
    reasons = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert reasons[-1] == whole.choices[0].finish_reason
    assert not any(reasons[:-1])
    # The usage comes last, alone, and is null before.
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == (
        whole.usage.completion_tokens)
    assert all(c.usage is None for c in chunks[:-1])
    assert len({c.id for c in chunks}) == 1
    assert all(c.object == "chat.completion.chunk" for c in chunks)


def test_the_stream_on_the_wire(server):
    with openai.DefaultHttpxClient(trust_env=False) as http:
        response = http.post(
            f"http://{server.http_address}/v1/chat/completions",
            json={"messages": [{"role": "user", "content": "hi"}],
                  "max_tokens": 3, "stream": True})
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    events = response.text.split("\n\n")
    assert events[-1] == "" and events[-2] == "data: [DONE]"
    for event in events[:-2]:
        assert json.loads(event.removeprefix("data: "))["choices"]


def test_a_history_that_is_known_is_not_computed_again(ai):
    text = "The tide comes in and goes out again, twice a day. " * 30
    first = ask(ai, text)
    assert first.usage.prompt_tokens > 128
    again = ask(ai, text)
    assert again.choices[0].message == first.choices[0].message
    cached = again.usage.prompt_tokens_details.cached_tokens
    assert again.usage.prompt_tokens - 64 <= cached + 1
    assert cached % 64 == 0 and cached < again.usage.prompt_tokens


def test_several_answers_share_one_prompt(ai):
    one = ask(ai, n=3, seed=7, temperature=1.0)
    assert [c.index for c in one.choices] == [0, 1, 2]
    texts = [c.message.content for c in one.choices]
    assert len(set(texts)) == 3
    # Each is what its seed alone gives.
    for i, text in enumerate(texts):
        alone = ask(ai, seed=7 + i, temperature=1.0)
        assert alone.choices[0].message.content == text
        assert one.usage.prompt_tokens == alone.usage.prompt_tokens
    parts = ["", "", ""]
    for chunk in ask(ai, n=3, seed=7, temperature=1.0, stream=True):
        for choice in chunk.choices:
            parts[choice.index] += choice.delta.content or ""
    assert parts == texts


def test_sampling_parameters_arrive(ai, client):
    # Stop at a text that is in the answer.
    text = ask(ai).choices[0].message.content
    stop = text[len(text) // 2:][:3]
    assert stop
    stopped = ask(ai, stop=[stop, "\0never"]).choices[0]
    assert stopped.message.content == text[:text.index(stop)]
    assert stopped.finish_reason == "stop"
    assert ask(ai, max_tokens=None,
               max_completion_tokens=2).usage.completion_tokens == 2
    # A token that is forbidden is not drawn; one that is wanted always is.
    tokens = client.chat(messages="Tell me of the sea.",
                         params=params(max_tokens=2, logprobs=1)).tokens
    banned = ask(ai, logit_bias={str(tokens[0].token_id): -100}, logprobs=True)
    assert (bytes(banned.choices[0].logprobs.content[0].bytes) !=
            tokens[0].token)
    wanted = ask(ai, logit_bias={str(tokens[0].token_id): 100}, logprobs=True,
                 temperature=2.0, max_tokens=8)
    assert {bytes(token.bytes)
            for token in wanted.choices[0].logprobs.content} == {
                tokens[0].token}
    # Penalties change a greedy answer that repeats itself.
    assert (ask(ai, "aaaa", max_tokens=48, frequency_penalty=2.0)
            .choices[0].message.content !=
            ask(ai, "aaaa", max_tokens=48).choices[0].message.content)
    # With top_p at nothing, a hot answer is the greedy one.
    assert ask(ai, temperature=2.0, top_p=0,
               seed=3).choices[0].message.content == text


def test_messages_of_parts_and_all_roles(ai):
    def content(messages):
        return ai.chat.completions.create(
            model="tiny", messages=messages, max_tokens=8,
            temperature=0).choices[0].message.content
    history = [{"role": "user", "content": "One"},
               {"role": "assistant", "content": "Two"},
               {"role": "user", "content": "Three"}]
    parts = [dict(m, content=[{"type": "text", "text": m["content"][:1]},
                              {"type": "text", "text": m["content"][1:]}])
             for m in history]
    assert content(parts) == content(history)
    assert (content([{"role": "developer", "content": "Brief."}, *history]) ==
            content([{"role": "system", "content": "Brief."}, *history]))


def test_fields_that_nobody_knows_are_passed_over(ai):
    assert ask(ai, user="me", metadata={"a": "b"}, store=False,
               service_tier="auto", extra_body={"x": [1, {"y": None}]}
               ).choices[0].message.content is not None


NOT_OFFERED = {
    "functions": [{"name": "f"}],
    "grammar": "root ::= 'a'",
    "modalities": ["text", "audio"],
}


@pytest.mark.parametrize("field", NOT_OFFERED)
def test_what_is_not_offered_is_refused_by_name(ai, field):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(ai, extra_body={field: NOT_OFFERED[field]})
    assert caught.value.param == field
    assert "not offered" in caught.value.message


WRONG = {
    "temperature": [-1, 2.5, "hot", True, [1]],
    "top_p": [-0.1, 1.5, "x"],
    "n": [0, 65, 1.5, "2"],
    "max_tokens": [0, -1, "many", 1e300],
    "stop": [5, ["a"] * 17, [""], [1], {"a": 1}],
    "seed": ["x", 1.5],
    "logit_bias": [[1], {"x": 1}, {"-1": 1}, {"99999999": 1}, {"1": 101},
                   {"1": "2"}],
    "logprobs": ["yes", 1],
    "top_logprobs": [-1, 21, 3],
    "presence_penalty": [-3, 3],
    "frequency_penalty": [2.1],
    "stream": ["yes"],
    "stream_options": [{}, 1],
    "model": [1],
    "messages": ["hi", [], [1], [{}], [{"role": "user"}],
                 [{"role": "king", "content": "x"}],
                 [{"role": "user", "content": 1}],
                 [{"role": "user", "content": [1]}],
                 [{"role": "user", "content": [{"type": "image_url"}]}],
                 [{"role": "tool", "content": 5}]],
}


@pytest.mark.parametrize("field", WRONG)
def test_wrong_values_are_refused_by_name(ai, field):
    for value in WRONG[field]:
        with pytest.raises(openai.BadRequestError) as caught:
            ask(ai, extra_body={field: value})
        error = caught.value
        assert error.param is not None, (value, error)
        assert error.param.startswith(field), (value, error)
        assert field in error.message
        assert error.type == "invalid_request_error"


def test_a_context_that_is_too_long(ai):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(ai, "word " * 20000)
    assert caught.value.code == "context_length_exceeded"
    # Before anything was sent, a stream fails as any request.
    with pytest.raises(openai.BadRequestError):
        ask(ai, "word " * 20000, stream=True)


def test_completions(ai, client):
    def complete(**more):
        return ai.completions.create(
            **{"model": "tiny", "max_tokens": 6, "temperature": 0, **more})
    one = complete(prompt="Once upon a time")
    assert one.object == "text_completion"
    assert one.choices[0].text
    # Several prompts, several answers.
    many = complete(prompt=["Once upon a time", "The sea"], n=2)
    assert [c.index for c in many.choices] == [0, 1, 2, 3]
    assert many.choices[0].text == one.choices[0].text
    assert many.choices[0].text == many.choices[1].text
    assert many.choices[2].text == complete(prompt="The sea").choices[0].text
    assert many.usage.prompt_tokens == (
        one.usage.prompt_tokens +
        complete(prompt="The sea").usage.prompt_tokens)
    # Token ids are the text that they are of.
    ids = list(client.inference.Tokenize(pb.TokenizeRequest(
        text="Once upon a time", add_bos=True)).token_ids)
    by_ids = complete(prompt=ids)
    assert by_ids.usage.prompt_tokens == len(ids)
    assert complete(prompt=[ids, ids]).choices[1].text == (
        by_ids.choices[0].text)
    # A stream.
    parts = list(complete(prompt="Once upon a time", stream=True))
    assert "".join(p.choices[0].text for p in parts) == one.choices[0].text
    assert parts[-1].choices[0].finish_reason in ("stop", "length")


def test_completions_echo_with_log_probabilities(ai, client):
    prompt = "Once upon a time, there was"
    score = client.inference.Score(pb.ScoreRequest(text=prompt))
    for max_tokens in (0, 4):
        answer = ai.completions.create(
            model="tiny", prompt=prompt, echo=True, logprobs=2,
            max_tokens=max_tokens, temperature=0).choices[0]
        assert answer.text.startswith(prompt)
        logprobs = answer.logprobs
        n = len(score.tokens) + 1
        assert logprobs.token_logprobs[0] is None
        for mine, token in zip(logprobs.token_logprobs[1:n], score.tokens):
            assert mine == pytest.approx(token.logprob, abs=1e-6)
        assert len(logprobs.tokens) >= n
        assert len(logprobs.tokens) == len(logprobs.token_logprobs) == (
            len(logprobs.text_offset)) == len(logprobs.top_logprobs)
        assert all(len(top) >= 2 for top in logprobs.top_logprobs[1:])
        if max_tokens == 0:
            assert answer.text == prompt and len(logprobs.tokens) == n


def test_who_has_no_token(tiny_model, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text("secret alpha\n")
    tokens.chmod(0o600)
    with harness.Server(tiny_model, tmp_path, *HTTP, "--token-file",
                        tokens) as server:
        with pytest.raises(openai.AuthenticationError) as caught:
            ask(client_of(server, "wrong"))
        assert caught.value.code == "invalid_api_key"
        with pytest.raises(openai.AuthenticationError):
            client_of(server, "wrong").models.list()
        assert ask(client_of(server, "secret")).choices
        # Probes need none.
        health = openai.DefaultHttpxClient(trust_env=False).get(
            f"http://{server.http_address}/health")
        assert health.json() == {"status": "ok"}
        counted = server.metrics().requests()
        assert counted["ChatCompletions", "UNAUTHENTICATED"] == 1
        assert counted["ChatCompletions", "OK"] == 1
        assert counted["ListModels", "UNAUTHENTICATED"] == 1


def test_who_has_too_many_requests_is_told_when_to_come_again(
        slow_model, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text("secret alpha\ntenant alpha requests=2\n")
    tokens.chmod(0o600)
    with harness.Server(slow_model, tmp_path, *HTTP, "--token-file",
                        tokens) as server:
        ai = client_of(server, "secret")
        stream = ask_without_end(ai, stream=True)
        next(iter(stream))
        # Two more answers are one too many.
        with pytest.raises(openai.RateLimitError) as caught:
            ask(ai, "more", model="slow", n=2)
        error = caught.value
        assert error.code == "tenant_requests"
        wait_ms = int(error.response.headers["retry-after-ms"])
        assert wait_ms > 0
        assert int(error.response.headers["retry-after"]) == (
            math.ceil(wait_ms / 1000))
        # The client's own retries get through once there is room.
        answers = []
        patient = threading.Thread(target=lambda: answers.append(ask(
            client_of(server, "secret", max_retries=50), "more", model="slow",
            n=2, max_tokens=2)))
        patient.start()
        wait_until(lambda: server.metrics().requests()
                   ["ChatCompletions", "RESOURCE_EXHAUSTED"] >= 2)
        stream.close()
        patient.join()
        assert len(answers[0].choices) == 2


def test_a_client_that_goes_away_ends_its_turn(slow_model, tmp_path):
    with harness.Server(slow_model, tmp_path, *HTTP) as slow:
        ai = client_of(slow)
        stream = ask_without_end(ai, stream=True)
        next(iter(stream))
        assert slow.metrics().sum("xcache_requests_running") == 1
        stream.close()
        wait_until(lambda: slow.metrics().sum("xcache_requests_running") == 0)
        # One that has not got a byte yet, too.
        hasty = client_of(slow, timeout=0.5)
        with pytest.raises(openai.APITimeoutError):
            ask_without_end(hasty)
        wait_until(lambda: slow.metrics().requests()
                   ["ChatCompletions", "CANCELLED"] == 2)
        assert slow.metrics().sum("xcache_requests_running") == 0


def test_sixty_four_streams_at_once(server):
    answers = [None] * 64
    def run(i):
        with client_of(server) as ai:
            answers[i] = "".join(
                c.choices[0].delta.content or ""
                for c in ask(ai, f"Number {i % 8}", stream=True,
                             max_tokens=24))
    threads = [threading.Thread(target=run, args=(i,)) for i in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(answers)
    for i in range(8, 64):
        assert answers[i] == answers[i - 8]


def test_request_ids_and_log_lines(server, ai):
    raw = ai.chat.completions.with_raw_response.create(
        model="tiny", messages=[{"role": "user", "content": "hi"}],
        max_tokens=2, extra_headers={"x-request-id": "mine-1",
                                     "x-session-id": "talk-1"})
    assert raw.headers["x-request-id"] == "mine-1"
    line = next(line for line in server.log().splitlines()
                if "request_id=mine-1" in line)
    for part in ("method=ChatCompletions", "code=OK", "tenant=default",
                 "session=talk-1", "generated_tokens=2"):
        assert part in line
    given = ai.models.with_raw_response.list().headers["x-request-id"]
    # In quotes where it could be read as a number.
    assert len(given) == 16
    assert re.search(f'request_id="?{given}\\b', server.log())


def test_sigterm_lets_streams_end(slow_model, tmp_path):
    with harness.Server(slow_model, tmp_path, *HTTP) as server:
        ai = client_of(server)
        stream = iter(ask(ai, "go on", model="slow", stream=True,
                          max_tokens=400, extra_body={"ignore_eos": True}))
        next(stream)
        server.process.terminate()
        wait_until(lambda: "draining" in server.log())
        with pytest.raises((openai.InternalServerError,
                            openai.APIConnectionError)):
            ask(client_of(server), "one more", model="slow")
        chunks = list(stream)
        assert chunks[-1].choices[0].finish_reason in ("stop", "length")
        assert server.process.wait(timeout=60) == 0
        assert "turns_cut_short=0" in server.log()


def test_tls_and_a_new_certificate(tiny_model, tmp_path):
    make_certificate(tmp_path / "tls")
    with harness.Server(tiny_model, tmp_path, *HTTP, "--tls-cert",
                        tmp_path / "tls/cert.pem", "--tls-key",
                        tmp_path / "tls/key.pem") as server:
        def models():
            done = subprocess.run(
                ["curl", "-sS", "--noproxy", "*", "--cacert",
                 tmp_path / "tls/cert.pem",
                 f"https://{server.http_address}/v1/models"],
                capture_output=True, text=True, timeout=30)
            return done.stdout
        assert json.loads(models())["data"][0]["id"] == "tiny"
        make_certificate(tmp_path / "tls")
        # Trusted by the new one alone.
        wait_until(lambda: models().startswith("{"), 15, "the new certificate")


def test_curl(server, tmp_path):
    """As the README has it; a body large enough for curl to ask first."""
    url = f"http://{server.http_address}/v1/chat/completions"
    (tmp_path / "body").write_text(json.dumps({
        "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2,
        "padding": base64.b64encode(bytes(2 << 20)).decode()}))
    done = subprocess.run(
        ["curl", "-sS", "--noproxy", "*", url, "-H",
         "Content-Type: application/json", "-H", "Expect: 100-continue",
         "--data-binary", f"@{tmp_path / 'body'}"],
        capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout)["choices"][0]["message"], done

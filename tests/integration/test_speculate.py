"""Drafts from the conversation's own text change no answer: the ids and the bits of
the log-probabilities are those without, alone and together, at any temperature, over
gRPC and over HTTP."""

import concurrent.futures
import itertools
import json
import urllib.error
import urllib.request

import grpc
import pytest
from xcache.v1 import inference_pb2 as pb
from xcache.v1 import sessions_pb2 as spb

import harness
from harness import fails_with, params, user

TEXT = ("The keeper of the light counts the ships that come in and the ships that "
        "go out, and the ships that come in are fewer than those that go out. ")


def ways():
    """What turns may be like."""
    for temperature, more in itertools.product([0.0, 1.0], [
            {}, {"stop": ["the ", "ar"]},
            {"response_format": pb.ResponseFormat(regex="[a-z ]{30,90}")}]):
        yield params(100, temperature, seed=7, logprobs=2,
                     ignore_eos=not more, **more)


def turns(client, name, wanted):
    """Two turns of a session, and one of a fork of it."""
    client.sessions.CreateSession(
        spb.CreateSessionRequest(id=name, system_prompt=TEXT))
    answers = [client.chat(name, f"Repeat: {TEXT}", params=wanted),
               client.chat(name, "Once more.", params=wanted)]
    client.sessions.ForkSession(
        spb.ForkSessionRequest(id=name, new_id=name + "-fork"))
    answers.append(client.chat(name + "-fork", "And again.", params=wanted))
    return [(a.bits, a.text, a.final.finish_reason, a.final.stop)
            for a in answers], answers


def run(model, folder):
    with harness.Server(model, folder, "--http-listen",
                        "127.0.0.1:0") as server:
        client = server.client()
        expected = []
        for i, wanted in enumerate(ways()):
            wanted.speculate = "off"
            told, answers = turns(client, f"off{i}", wanted)
            assert not any(a.final.drafted_tokens for a in answers)
            expected.append(told)
        before = server.metrics()
        drafted = accepted = 0
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            # By itself, and all at once; as the server has it, and by name.
            for round_, at_once in enumerate([False, True]):
                calls = []
                for i, wanted in enumerate(ways()):
                    wanted.speculate = "ngram" if i % 2 else ""
                    call = pool.submit(turns, server.client(),
                                       f"ngram{round_}-{i}", wanted)
                    calls.append(call)
                    if not at_once:
                        call.result()
                for call, told in zip(calls, expected):
                    assert call.result()[0] == told
                    for answer in call.result()[1]:
                        final = answer.final
                        assert final.accepted_tokens <= final.drafted_tokens
                        drafted += final.drafted_tokens
                        accepted += final.accepted_tokens
        after = server.metrics()
        for name, count in [("drafted", drafted), ("accepted", accepted)]:
            metric = f"xcache_{name}_tokens_total"
            assert after.sum(metric) - before.sum(metric) == count
        assert drafted > 0
        assert after.corrupt_pages() == 0
        assert after.sum("xcache_mismatched_pages_total") == 0
        print(f"{accepted} of {drafted} drafted tokens were right")

        with fails_with(grpc.StatusCode.INVALID_ARGUMENT, "speculate",
                        "ngram or off"):
            client.chat(messages="go", params=params(speculate="maybe"))

        def post(**more):
            body = {"messages": [{"role": "user", "content": TEXT}], "seed": 3,
                    "max_tokens": 60, "logprobs": True, "temperature": 0,
                    "ignore_eos": True, **more}
            request = urllib.request.Request(
                f"http://{server.http_address}/v1/chat/completions",
                json.dumps(body).encode(),
                {"Content-Type": "application/json"})
            with harness.NO_PROXY.open(request) as response:
                return json.load(response)["choices"][0]

        assert post(speculate="off") == post(speculate="ngram") == post()
        for wrong in ["on", 1, True]:
            with pytest.raises(urllib.error.HTTPError) as caught:
                post(speculate=wrong)
            assert caught.value.code == 400
            assert json.load(caught.value)["error"]["param"] == "speculate"
        server.stop()


def test_answers_are_those_without_drafts(tiny_model, tmp_path):
    run(tiny_model, tmp_path)


@pytest.mark.model
def test_the_same_with_the_real_model(real_model, tmp_path):
    run(real_model, tmp_path)


def test_a_server_may_be_without(tiny_model, tmp_path):
    with harness.Server(tiny_model, tmp_path, "--speculate", "off") as server:
        client = server.client()
        for mode in ["", "off", "ngram"]:
            final = client.chat(messages=[user(TEXT)], params=params(
                100, ignore_eos=True, speculate=mode)).final
            assert (final.drafted_tokens > 0) == (mode == "ngram")
        server.stop()

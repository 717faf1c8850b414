"""langchain-openai, litellm, aiperf and curl, unchanged."""

import asyncio
import json
import os
import subprocess
import sys

import litellm
import openai
import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI

from conftest import MODEL

KEY = "sk-good"


def chat_model(base_url, **more):
    more = {"temperature": 0, "max_tokens": 12, "api_key": KEY, **more}
    return ChatOpenAI(base_url=base_url, model=MODEL, **more)


def test_langchain(base_url):
    talk = [SystemMessage("Be brief."), HumanMessage("Tell me of the sea.")]
    model = chat_model(base_url)
    whole = model.invoke(talk)
    assert isinstance(whole, AIMessage) and whole.content
    usage = whole.usage_metadata
    assert usage["output_tokens"] > 0
    parts = list(model.stream(talk, stream_usage=True))
    assert len(parts) > 2
    assert "".join(part.content for part in parts) == whole.content
    assert [p.usage_metadata["output_tokens"] for p in parts
            if p.usage_metadata] == [usage["output_tokens"]]
    assert [m.content for m in model.batch([talk, talk])] == (
        [whole.content] * 2)
    assert asyncio.run(model.ainvoke(talk)).content == whole.content
    # A conversation that is sent again is not computed again.
    long = talk + [AIMessage("waves " * 100), HumanMessage("And then?")]
    model.invoke(long)
    details = model.invoke(long).usage_metadata["input_token_details"]
    assert details["cache_read"] >= 64
    logprobs = model.bind(logprobs=True, top_logprobs=2).invoke(talk)
    assert len(logprobs.response_metadata["logprobs"]["content"]) > 0
    with pytest.raises(openai.AuthenticationError):
        chat_model(base_url, api_key="sk-bad").invoke(talk)


def test_langchain_goes_on_from_a_response(base_url):
    model = chat_model(base_url, use_responses_api=True,
                       use_previous_response_id=True)
    first = model.invoke([HumanMessage("Tell me of the sea.")])
    assert first.response_metadata["id"].startswith("resp_")
    second = model.invoke([HumanMessage("Tell me of the sea."), first,
                           HumanMessage("And then?")])
    assert second.text
    assert second.usage_metadata["input_tokens"] > (
        first.usage_metadata["input_tokens"])


def test_litellm(base_url):
    talk = [{"role": "user", "content": "Tell me of the sea."}]
    common = {"model": f"openai/{MODEL}", "api_base": base_url, "api_key": KEY,
              "messages": talk, "max_tokens": 12, "temperature": 0}
    whole = litellm.completion(**common)
    text = whole.choices[0].message.content
    assert text and whole.usage.completion_tokens > 0
    parts = list(litellm.completion(
        **common, stream=True, stream_options={"include_usage": True}))
    assert "".join(p.choices[0].delta.content or ""
                   for p in parts if p.choices) == text
    assert parts[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert asyncio.run(litellm.acompletion(**common)).choices[
        0].message.content == text
    prompt = {**common, "model": f"text-completion-openai/{MODEL}"}
    del prompt["messages"]
    assert litellm.text_completion(prompt="Once upon", **prompt).choices[0].text
    for wrong, error in [({"api_key": "sk-bad"}, litellm.AuthenticationError),
                         ({"model": "openai/none"}, litellm.NotFoundError),
                         ({"top_p": 7}, litellm.BadRequestError)]:
        with pytest.raises(error):
            litellm.completion(**{**common, **wrong}, num_retries=0)


# Bytes for tokens: no tokenizer is to be fetched.
MAKE_TOKENIZER = """
import sys
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
letters = sorted(pre_tokenizers.ByteLevel.alphabet())
made = Tokenizer(models.BPE({c: i for i, c in enumerate(letters)}, []))
made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
made.decoder = decoders.ByteLevel()
PreTrainedTokenizerFast(tokenizer_object=made).save_pretrained(sys.argv[1])
"""


# Answers of 16 tokens, none of which is without text: this model may say its end
# token so many times over, where aiperf misses the answer.
SIXTEEN_TOKENS = json.dumps({"ignore_eos": True,
                             "logit_bias": {str(i): -100 for i in range(3)}})


def test_aiperf(base_url, tmp_path):
    """A short load: no request fails."""
    # As its hub's cache has it, for it takes no folders.
    cache = tmp_path / "hub" / "models--local--bytes"
    revision = "0" * 40
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text(revision)
    subprocess.run([sys.executable, "-c", MAKE_TOKENIZER,
                    cache / "snapshots" / revision], check=True)
    subprocess.run(
        [os.path.join(os.path.dirname(sys.executable), "aiperf"), "profile",
         "--model", MODEL, "--url", base_url.removesuffix("/v1"), "--api-key",
         KEY, "--endpoint-type", "chat", "--streaming", "--request-count",
         "40", "--concurrency", "8", "--synthetic-input-tokens-mean", "200",
         "--output-tokens-mean", "16", "--extra-inputs", SIXTEEN_TOKENS,
         "--use-server-token-count", "--tokenizer", "local/bytes", "--ui",
         "none", "--output-artifact-dir", tmp_path / "out"],
        check=True, cwd=tmp_path, timeout=240,
        env={**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1",
             "NO_PROXY": "*"})
    found, = (tmp_path / "out").rglob("profile_export_aiperf.json")
    figures = json.loads(found.read_text())
    assert figures["request_count"]["avg"] == 40
    assert not figures.get("error_summary")
    assert figures["time_to_first_token"]["avg"] > 0
    assert figures["output_sequence_length"]["avg"] == 16


def curl(*args):
    return subprocess.run(["curl", "-sS", "--noproxy", "*", *args],
                          capture_output=True, text=True, check=True,
                          timeout=60).stdout


def test_curl(base_url):
    bearer = ("-H", f"Authorization: Bearer {KEY}")
    body = json.dumps({"messages": [{"role": "user", "content": "hi"}],
                       "max_tokens": 4, "stream": True})
    url = f"{base_url}/chat/completions"
    post = (*bearer, "-H", "Content-Type: application/json", url)
    lines = curl(*post, "-N", "-d", body).split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    assert json.loads(lines[0].removeprefix("data: "))["object"] == (
        "chat.completion.chunk")
    for more, status in [((*bearer, f"{base_url}/models"), "200"),
                         ((f"{base_url}/models",), "401"),
                         ((*bearer, f"{base_url}/none"), "404"),
                         ((*post, "-d", "{"), "400"),
                         ((*post, "-X", "PUT", "-d", body), "405"),
                         ((*bearer, url, "-d", body), "415")]:
        assert curl(*more, "-o", "/dev/null", "-w", "%{http_code}") == status

"""Histories that OpenAI's own client sends again as text: what is known of them
goes on beyond the answers, whose tokens are those that the model wrote."""

import json

import openai
import pytest

import harness
from openai_fixtures import HTTP, client_of

# Random weights spell words as no tokenizer would: text alone leads to other
# tokens.
WORDS = "[a-z]{200,220}"


@pytest.fixture(scope="module")
def server(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("resent")
    (folder / "tokens").write_text("a-token-of-one one\na-token-of-two two\n")
    (folder / "tokens").chmod(0o600)
    with harness.Server(tiny_model, folder, *HTTP, "--token-file",
                        folder / "tokens") as running:
        yield running


@pytest.fixture
def ai(server):
    return client_of(server, "a-token-of-one")


def talk(ai, messages, **more):
    more = {"max_tokens": 300, "temperature": 1, "seed": 5, **more}
    return ai.chat.completions.create(model="tiny", messages=messages, **more)


def cached(answer):
    return answer.usage.prompt_tokens_details.cached_tokens


def known(answer):
    """What whole blocks are known of once it was given: its last token was
    never computed with."""
    usage = answer.usage
    return (usage.prompt_tokens + usage.completion_tokens - 1) // 64 * 64


def user(text):
    return {"role": "user", "content": text}


def test_each_turn_knows_all_before_it(ai):
    messages = [{"role": "system", "content": "Be brief."}, user("One?")]
    before = 0
    for turn in range(4):
        answer = talk(ai, messages, seed=turn,
                      extra_body={"guided_regex": WORDS})
        assert answer.choices[0].finish_reason == "stop"
        assert cached(answer) == before
        before = known(answer)
        assert before // 64 > answer.usage.prompt_tokens // 64
        messages += [answer.choices[0].message.model_dump(exclude_none=True),
                     user(f"And {turn}?")]


def test_streamed_and_several_answers_are_known(ai):
    messages = [user("Tell me of streams.")]
    parts, usage = ["", ""], None
    for chunk in talk(ai, messages, stream=True, n=2,
                      stream_options={"include_usage": True},
                      extra_body={"guided_regex": "[a-z]{100}"}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            parts[choice.index] += choice.delta.content or ""
    assert len(set(parts)) == 2
    for text in parts:
        answer = talk(ai, [*messages, {"role": "assistant", "content": text},
                           user("And?")], max_tokens=1)
        # Of two answers together they say how many tokens they are.
        assert cached(answer) > usage.prompt_tokens
    assert cached(answer) // 64 == (answer.usage.prompt_tokens - 12) // 64


def test_thoughts_that_are_left_out_are_there(ai):
    messages = [user("Think.")]
    answer = talk(ai, messages, extra_body={
        "guided_regex": "<think>\n[a-z]{70}\n</think>\n\n[A-Z]{20}"})
    message = answer.choices[0].message
    assert len(message.reasoning_content) == 70 and len(message.content) == 20
    without = [*messages, {"role": "assistant", "content": message.content},
               user("And?")]
    again = talk(ai, without, max_tokens=1)
    assert cached(again) == known(answer) >= 64
    # All that was thought is a part of the prompt.
    assert (again.usage.prompt_tokens >
            answer.usage.prompt_tokens + answer.usage.completion_tokens)
    # As its client has it, with the field that is ours; and with white space.
    for content in (message.content, f" {message.content}\n",
                    f"<think>{message.reasoning_content}</think>"
                    f"{message.content}"):
        sent = [*messages, {"role": "assistant", "content": content,
                            "reasoning_content": message.reasoning_content},
                user("And?")]
        usage = talk(ai, sent, max_tokens=1).usage
        assert usage.prompt_tokens == again.usage.prompt_tokens
    # A thought that it never had makes another conversation.
    other = [*messages, {"role": "assistant", "content":
                         f"<think>No.</think>{message.content}"}, user("And?")]
    assert cached(talk(ai, other, max_tokens=1)) < 64


def test_calls_that_a_client_spaces_anew(ai):
    tool = {"type": "function", "function": {"name": "find", "parameters": {
        "type": "object", "required": ["what"], "additionalProperties": False,
        "properties": {"what": {"type": "string", "minLength": 80,
                                "maxLength": 90}}}}}
    messages = [user("Find it.")]
    answer = talk(ai, messages, tools=[tool], tool_choice="required",
                  parallel_tool_calls=False)
    call = answer.choices[0].message.tool_calls[0].model_dump()
    result = {"role": "tool", "tool_call_id": call["id"], "content": "here"}
    for separators in ((", ", ": "), (",", ":")):
        call["function"]["arguments"] = json.dumps(
            json.loads(call["function"]["arguments"]), separators=separators,
            ensure_ascii=False)
        again = talk(ai, [*messages, {"role": "assistant", "content": None,
                                      "tool_calls": [call]}, result],
                     tools=[tool], max_tokens=1)
        assert cached(again) >= known(answer) > answer.usage.prompt_tokens


def test_what_a_response_said_is_known_to_a_chat(ai):
    response = ai.responses.create(
        model="tiny", input="Tell me of stores.", temperature=1,
        max_output_tokens=300, extra_body={"guided_regex": WORDS, "seed": 4})
    again = talk(ai, [user("Tell me of stores."),
                      {"role": "assistant", "content": response.output_text},
                      user("And?")], max_tokens=1)
    usage = response.usage
    assert cached(again) == (usage.input_tokens + usage.output_tokens -
                             1) // 64 * 64 >= 64


def test_tenants_know_nothing_of_each_other(server, ai):
    other = client_of(server, "a-token-of-two")
    messages = [user("Tell me of walls. " * 4)]
    answer = talk(ai, messages, extra_body={"guided_regex": WORDS})
    messages += [{"role": "assistant",
                  "content": answer.choices[0].message.content}, user("And?")]
    theirs = talk(other, messages, max_tokens=1)
    assert cached(theirs) == 0
    mine = talk(ai, messages, max_tokens=1)
    assert cached(mine) == known(answer)


def test_without_memory_for_answers_the_text_is_tokenized(tiny_model, tmp_path):
    for given in ("0", "16MiB"):
        with harness.Server(tiny_model, tmp_path, *HTTP, "--answers-bytes",
                            given) as server:
            ai = client_of(server)
            messages = [user("Tell me of walls.")]
            answer = talk(ai, messages, extra_body={"guided_regex": WORDS})
            messages += [{"role": "assistant",
                          "content": answer.choices[0].message.content},
                         user("And?")]
            again = talk(ai, messages, max_tokens=1)
            assert (cached(again) == known(answer)) == (given != "0")


def test_names_of_conversations_are_for_the_log_alone(server, ai):
    for name, more in (
            ("talk-2", {"extra_headers": {"X-OpenWebUI-Chat-Id": "talk-2"}}),
            ("talk-3", {"extra_body": {"prompt_cache_key": "talk-3"}}),
            ("talk-4", {"extra_headers": {"x-session-id": "talk-4"},
                        "extra_body": {"prompt_cache_key": "talk-5"}})):
        talk(ai, [user(f"I am {name}")], max_tokens=2, **more)
        assert f"session={name} " in server.log()
    assert "talk-5" not in server.log()
    with pytest.raises(openai.NotFoundError):
        ai.conversations.retrieve("talk-2")

"""Tools over the HTTP API with OpenAI's own client. The tiny model's weights are
random: what it calls is sense only by what its calls are held to."""

import json

import jsonschema
import openai
import pytest

import harness
from openai_fixtures import HTTP, ai, ask, client_of, server  # noqa: F401

WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "Weather \u2600 of a place.",
    "strict": True,
    "parameters": {"type": "object",
                   "properties": {"unit": {"enum": ["C", "\u00b0F", "\"}"]},
                                  "days": {"type": "integer", "minimum": 1,
                                           "maximum": 9}},
                   "required": ["unit", "days"],
                   "additionalProperties": False}}}
NOW = {"type": "function", "function": {
    "name": "now", "parameters": {"type": "object", "properties": {},
                                  "additionalProperties": False}}}
SCHEMAS = {tool["function"]["name"]: tool["function"]["parameters"]
           for tool in (WEATHER, NOW)}


def call(ai, tool_choice="required", tools=(WEATHER, NOW), **more):
    return ask(ai, "What is the weather?", **{
        "tools": list(tools), "tool_choice": tool_choice, "temperature": 1,
        "max_tokens": 400, "seed": 3, **more})


def named(name):
    return {"type": "function", "function": {"name": name}}


def check(calls):
    assert calls
    assert len({one.id for one in calls}) == len(calls)
    for one in calls:
        assert one.type == "function"
        jsonschema.validate(json.loads(one.function.arguments),
                            SCHEMAS[one.function.name])


def test_required_and_named_calls(ai):
    names = set()
    for seed in range(8):
        choice = call(ai, seed=seed, parallel_tool_calls=False).choices[0]
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None
        assert len(choice.message.tool_calls) == 1
        check(choice.message.tool_calls)
        names.add(choice.message.tool_calls[0].function.name)
    assert names <= set(SCHEMAS)
    for name in SCHEMAS:
        calls = call(ai, named(name)).choices[0].message.tool_calls
        assert [one.function.name for one in calls] == [name]
        check(calls)


def test_streamed_calls_are_the_same(ai):
    whole = call(ai, named("get_weather")).choices[0].message.tool_calls
    chunks = list(call(ai, named("get_weather"), stream=True))
    deltas = [choice.delta.tool_calls[0] for chunk in chunks
              for choice in chunk.choices if choice.delta.tool_calls]
    assert deltas[0].function.name == "get_weather"
    assert deltas[0].id.startswith("call_") and deltas[0].type == "function"
    assert all(d.index == 0 for d in deltas)
    assert all(d.id is None and d.function.name is None for d in deltas[1:])
    assert len(deltas) > 2, "arguments come as they are written"
    assert ("".join(d.function.arguments or "" for d in deltas) ==
            whole[0].function.arguments)
    assert all(not choice.delta.content for chunk in chunks
               for choice in chunk.choices)
    reasons = [choice.finish_reason for chunk in chunks
               for choice in chunk.choices if choice.finish_reason]
    assert reasons == ["tool_calls"]


def test_a_cut_call_is_there_as_far(ai):
    choice = call(ai, named("get_weather"), max_tokens=60).choices[0]
    assert choice.finish_reason == "length"
    for one in choice.message.tool_calls or ():
        assert one.function.name == "get_weather"


def test_auto_is_text_where_nothing_is_called(ai):
    for more in ({}, {"tool_choice": "none"}, {"tools": []}):
        choice = call(ai, **{"tool_choice": "auto", "max_tokens": 8,
                             "temperature": 0, **more}).choices[0]
        assert choice.finish_reason in ("stop", "length")
        assert choice.message.content and not choice.message.tool_calls


def test_the_loop_of_an_agent_reuses_its_history(ai):
    messages = [{"role": "system", "content": "Help. " * 40},
                {"role": "user", "content": "What is the weather?"}]
    first = ai.chat.completions.create(
        model="tiny", messages=messages, tools=[WEATHER, NOW], temperature=1,
        tool_choice=named("get_weather"), max_tokens=400, seed=1)
    message = first.choices[0].message
    messages += [message.model_dump(exclude_none=True), {
        "role": "tool", "tool_call_id": message.tool_calls[0].id,
        "content": "sunny"}]
    second = ai.chat.completions.create(
        model="tiny", messages=messages, tools=[WEATHER, NOW], temperature=0,
        max_tokens=8)
    assert second.choices[0].finish_reason in ("stop", "length")
    reused = second.usage.prompt_tokens_details.cached_tokens
    # What the answer's text is tokenized to may be other tokens than it was.
    assert first.usage.prompt_tokens - 64 <= reused


@pytest.mark.parametrize("more, param", [
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]},
     "tools[0].function.name"),
    ({"tools": []}, "tool_choice"),
    ({"tool_choice": named("none_such")}, "tool_choice.function.name"),
    ({"tool_choice": "sometimes"}, "tool_choice"),
    ({"tools": [{"type": "function", "function": {
        "name": "a", "strict": True, "parameters": {"not": {}}}}]},
     "tools[0].function.parameters"),
])
def test_tools_that_are_wrong(ai, more, param):
    with pytest.raises(openai.BadRequestError) as caught:
        call(ai, **more)
    assert caught.value.param == param


def test_a_format_beside_tools_is_for_what_is_no_call(ai):
    """An answer is calls, or all of it is of the format."""
    schema = {"type": "object", "required": ["a"],
              "additionalProperties": False,
              "properties": {"a": {"enum": [1, 2, 3]}}}
    form = {"type": "json_schema", "json_schema": {
        "name": "x", "strict": True, "schema": schema}}
    reasons = set()
    for seed in range(24):
        choice = call(ai, "auto", seed=seed, response_format=form).choices[0]
        reasons.add(choice.finish_reason)
        if choice.message.tool_calls:
            assert not choice.message.content
            check(choice.message.tool_calls)
        else:
            jsonschema.validate(json.loads(choice.message.content), schema)
    assert reasons == {"stop", "tool_calls"}
    # What must be a call, or may not be one, is.
    must = call(ai, "required", response_format=form).choices[0]
    assert must.finish_reason == "tool_calls"
    check(must.message.tool_calls)
    for more in ({"tool_choice": "none"}, {"tools": ()}):
        none = call(ai, **{"tool_choice": "auto", **more},
                    response_format=form).choices[0]
        jsonschema.validate(json.loads(none.message.content), schema)
    words = call(ai, "auto", extra_body={"guided_choice": ["yes", "no"]},
                 tools=[NOW]).choices[0].message
    assert words.tool_calls or words.content in ("yes", "no")


def flat(tool):
    return {"type": "function", **tool["function"]}


def respond(ai, text="What is the weather?", **more):
    return ai.responses.create(**{
        "model": "tiny", "input": text, "tools": [flat(WEATHER), flat(NOW)],
        "tool_choice": "required", "temperature": 1, "max_output_tokens": 400,
        "parallel_tool_calls": False, **more,
        "extra_body": {"seed": 3, **more.get("extra_body", {})}})


def test_a_response_calls_and_goes_on(ai):
    first = respond(ai, instructions="Help.")
    assert [item.type for item in first.output] == ["function_call"]
    one = first.output[0]
    jsonschema.validate(json.loads(one.arguments), SCHEMAS[one.name])
    assert one.status == "completed" and one.call_id and one.id
    assert first.tools[0].name == "get_weather"
    assert first.tool_choice == "required"
    assert first.instructions == "Help."
    # It is stored as it was seen.
    stored = ai.responses.retrieve(first.id)
    assert stored.output == first.output and stored.tools == first.tools
    assert stored.instructions == "Help."
    # A chat is told the same of the same tools.
    chat = ai.chat.completions.create(
        model="tiny", messages=[{"role": "system", "content": "Help."},
                                {"role": "user", "content":
                                 "What is the weather?"}],
        tools=[WEATHER, NOW], max_tokens=1)
    assert abs(chat.usage.prompt_tokens - first.usage.input_tokens) < 30
    result = {"type": "function_call_output", "call_id": one.call_id,
              "output": "sunny"}
    second = respond(ai, [result], previous_response_id=first.id,
                     tool_choice="auto", max_output_tokens=8)
    # Nothing of what was before is computed again.
    assert second.usage.input_tokens_details.cached_tokens >= (
        first.usage.input_tokens + first.usage.output_tokens - 64) // 64 * 64
    assert second.instructions == "Help."
    items = ai.responses.input_items.list(second.id, order="asc").data
    assert [item.type for item in items] == [
        "message", "message", "function_call", "function_call_output"]
    assert items[0].content[0].text == "Help."
    assert items[2].call_id == one.call_id == items[3].call_id
    assert items[2].arguments == one.arguments
    assert items[3].output == "sunny"


def test_a_response_of_sent_items_is_the_same(ai):
    """What it stores and what a client keeps itself come to one prompt."""
    first = respond(ai, store=False)
    one = first.output[0]
    whole = [{"role": "user", "content": "What is the weather?"},
             {"type": "function_call", "call_id": one.call_id,
              "name": one.name, "arguments": one.arguments},
             {"type": "function_call_output", "call_id": one.call_id,
              "output": "sunny"}]
    again = respond(ai, whole, store=False, tool_choice="none",
                    max_output_tokens=8)
    assert again.output[0].type == "message"


def test_a_streamed_response_calls(ai):
    whole = respond(ai)
    events = list(respond(ai, stream=True))
    assert [event.sequence_number for event in events] == list(
        range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:3] == ["response.created", "response.in_progress",
                         "response.output_item.added"]
    assert set(kinds[3:-3]) == {"response.function_call_arguments.delta"}
    assert kinds[-3:] == ["response.function_call_arguments.done",
                          "response.output_item.done", "response.completed"]
    deltas = "".join(event.delta for event in events[3:-3])
    assert deltas == events[-3].arguments == whole.output[0].arguments
    assert events[2].item.name == whole.output[0].name
    last = events[-1].response
    assert events[-2].item == last.output[0]
    assert ai.responses.retrieve(last.id).output == last.output


def test_tools_go_where_the_next_request_has_none(ai):
    first = respond(ai)
    plain = ai.responses.create(
        model="tiny", input="And now?", previous_response_id=first.id,
        max_output_tokens=4, temperature=0)
    assert plain.tools == [] and plain.output[0].type == "message"
    # The one before keeps its own.
    assert ai.responses.retrieve(first.id).output == first.output
    kept = respond(ai, "Again?", previous_response_id=first.id)
    assert kept.usage.input_tokens_details.cached_tokens >= (
        first.usage.input_tokens) // 64 * 64


def test_a_real_model_calls(real_model, tmp_path):
    with harness.Server(real_model, tmp_path, *HTTP) as server:
        ai = client_of(server)
        calls = call(ai, model=None, temperature=0,
                     parallel_tool_calls=False).choices[0]
        assert calls.finish_reason == "tool_calls"
        check(calls.message.tool_calls)
        auto = call(ai, "auto", model=None, temperature=0,
                    max_tokens=120).choices[0]
        print(auto.finish_reason, auto.message)
        if auto.finish_reason == "tool_calls":
            check(auto.message.tool_calls)

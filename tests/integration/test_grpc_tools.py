"""Tools over gRPC. The tiny model's weights are random: what it calls is sense
only by what its calls are held to."""

import json

import grpc
import jsonschema
import pytest
from xcache.v1 import common_pb2
from xcache.v1 import inference_pb2 as pb
from xcache.v1 import sessions_pb2 as spb

import harness
from harness import fails_with, params, system, user
from openai_fixtures import client_of, server  # noqa: F401

Code = grpc.StatusCode
END, TOOL_CALLS, MAX_TOKENS = (pb.FINISH_REASON_END, pb.FINISH_REASON_TOOL_CALLS,
                               pb.FINISH_REASON_MAX_TOKENS)

# In the order in which the server writes them.
WEATHER = {"name": "get_weather", "description": "Weather \u2600 of a place.",
           "parameters": {"type": "object",
                          "properties": {"unit": {"enum": ["C", "\u00b0F"]},
                                         "days": {"type": "integer",
                                                  "minimum": 1,
                                                  "maximum": 9}},
                          "required": ["unit", "days"],
                          "additionalProperties": False},
           "strict": True}
NOW = {"name": "now", "parameters": {"type": "object", "properties": {},
                                     "additionalProperties": False}}
SCHEMAS = {tool["name"]: tool["parameters"] for tool in (WEATHER, NOW)}
QUESTION = "What is the weather?"


def tool(function):
    return pb.Tool(**{**function,
                      "parameters": json.dumps(function["parameters"],
                                               ensure_ascii=False)})


TOOLS = [tool(WEATHER), tool(NOW)]
REQUIRED = pb.ToolChoice(mode=pb.ToolChoice.MODE_REQUIRED)
NONE = pb.ToolChoice(mode=pb.ToolChoice.MODE_NONE)


def named(name):
    return pb.ToolChoice(name=name)


@pytest.fixture
def client(server):
    return server.client()


class Answer(harness.Answer):
    """With its calls and thoughts."""

    def __init__(self, responses):
        self.calls = []
        self.call_deltas = 0
        self.reasoning = ""
        super().__init__(map(self.take, responses))

    def take(self, response):
        self.reasoning += response.reasoning
        for delta in response.tool_calls:
            self.call_deltas += 1
            if delta.index == len(self.calls):
                assert delta.name and delta.id
                self.calls.append(pb.ToolCallDelta(index=delta.index))
            else:
                assert delta.index == len(self.calls) - 1
                assert not delta.name and not delta.id
            call = self.calls[-1]
            call.name += delta.name
            call.id += delta.id
            call.arguments += delta.arguments
        return response


def ask(client, messages=QUESTION, session_id="", tools=TOOLS,
        tool_choice=REQUIRED, max_tokens=400, temperature=1, seed=3, options=None,
        **more):
    if isinstance(messages, str):
        messages = [user(messages)]
    return Answer(client.inference.Chat(pb.ChatRequest(
        session_id=session_id, messages=messages, tools=tools,
        tool_choice=tool_choice,
        params=params(max_tokens=max_tokens, temperature=temperature, seed=seed,
                      **(options or {})), **more), timeout=120))


def check(calls):
    assert calls
    assert len({call.id for call in calls}) == len(calls)
    for call in calls:
        jsonschema.validate(json.loads(call.arguments), SCHEMAS[call.name])


def results(*texts):
    return [common_pb2.Message(role=common_pb2.ROLE_TOOL, content=text)
            for text in texts]


def assistant(calls):
    return common_pb2.Message(role=common_pb2.ROLE_ASSISTANT, tool_calls=[
        common_pb2.ToolCall(name=call.name, arguments=call.arguments)
        for call in calls])


def test_required_calls_stream_and_are_those_of_http(server, client):
    ai = client_of(server)
    deltas = 0
    for seed in range(3):
        for messages, history in (
                ([user(QUESTION)], [{"role": "user", "content": QUESTION}]),
                ([system("Help."), user(QUESTION)],
                 [{"role": "system", "content": "Help."},
                  {"role": "user", "content": QUESTION}])):
            answer = ask(client, messages, seed=seed,
                         parallel_tool_calls=False)
            assert answer.final.finish_reason == TOOL_CALLS
            assert answer.text == "" and len(answer.calls) == 1
            check(answer.calls)
            deltas = max(deltas, answer.call_deltas)
            other = ai.chat.completions.create(
                model="tiny", messages=history, max_tokens=400, temperature=1,
                seed=seed, tool_choice="required", parallel_tool_calls=False,
                tools=[{"type": "function", "function": function}
                       for function in (WEATHER, NOW)])
            call = other.choices[0].message.tool_calls[0].function
            assert (call.name, call.arguments) == (answer.calls[0].name,
                                                   answer.calls[0].arguments)
            assert other.usage.prompt_tokens == answer.final.prompt_tokens
    assert deltas > 1, "arguments come as they are written"


def test_a_named_tool_is_called(client):
    for name in SCHEMAS:
        answer = ask(client, tool_choice=named(name))
        assert [call.name for call in answer.calls] == [name]
        check(answer.calls)


def test_a_cut_call_is_there_as_far(client):
    answer = ask(client, tool_choice=named("get_weather"), max_tokens=60)
    assert answer.final.finish_reason == MAX_TOKENS
    for call in answer.calls:
        assert call.name == "get_weather"


def test_auto_is_text_where_nothing_is_called(client):
    for choice, tools in ((None, TOOLS), (NONE, TOOLS), (None, [])):
        answer = ask(client, tool_choice=choice, tools=tools, max_tokens=8,
                     temperature=0)
        assert answer.final.finish_reason in (END, MAX_TOKENS)
        assert answer.text and not answer.calls
    # Without tools in it the prompt is shorter.
    assert (ask(client, tool_choice=NONE, max_tokens=1).final.prompt_tokens ==
            ask(client, tool_choice=None, tools=[], max_tokens=1)
            .final.prompt_tokens)


def test_a_format_beside_tools_is_for_what_is_no_call(client):
    schema = {"type": "object", "required": ["a"],
              "additionalProperties": False,
              "properties": {"a": {"enum": [1, 2, 3]}}}
    reasons = set()
    for seed in range(24):
        answer = ask(client, tool_choice=None, seed=seed, options={
            "response_format": pb.ResponseFormat(
                json_schema=json.dumps(schema))})
        reasons.add(answer.final.finish_reason)
        if answer.calls:
            assert not answer.text
            check(answer.calls)
        else:
            jsonschema.validate(json.loads(answer.text), schema)
    assert reasons == {END, TOOL_CALLS}


def test_tokens_are_those_of_the_answer(client):
    answer = ask(client, options={"logprobs": 1})
    assert len(answer.tokens) == answer.final.generated_tokens
    text = b"".join(token.token for token in answer.tokens).decode()
    for call in answer.calls:
        assert call.arguments in text


def test_the_loop_of_an_agent_reuses_its_history(client):
    messages = [system("Help. " * 40), user(QUESTION)]
    first = ask(client, messages, tool_choice=named("get_weather"))
    messages += [assistant(first.calls), *results("sunny")]
    second = ask(client, messages, tool_choice=None, max_tokens=8,
                 temperature=0)
    assert second.final.prompt_tokens > (first.final.prompt_tokens +
                                         first.final.generated_tokens)
    assert first.final.prompt_tokens - 64 <= second.reused


def get(client, name):
    return client.sessions.GetSession(
        spb.GetSessionRequest(id=name, with_messages=True))


def test_a_session_keeps_its_tools(client):
    client.sessions.CreateSession(spb.CreateSessionRequest(
        id="agent", system_prompt="Help. " * 40))
    first = ask(client, session_id="agent")
    check(first.calls)
    # A history of the same messages is the same prompt.
    assert ask(client, [system("Help. " * 40), user(QUESTION)],
               max_tokens=1).final.prompt_tokens == first.final.prompt_tokens
    begin = get(client, "agent").messages[0]
    assert begin.role == common_pb2.ROLE_SYSTEM
    assert begin.content.startswith("Help. ") and "get_weather" in begin.content
    # The same again: nothing of what was before is computed again.
    second = ask(client, results("sunny"), session_id="agent",
                 tool_choice=None, max_tokens=8, temperature=0)
    known = first.final.prompt_tokens + first.final.generated_tokens
    assert second.reused >= (known - 64) // 64 * 64
    session = get(client, "agent")
    assert session.messages[0] == begin
    assert session.messages[3].role == common_pb2.ROLE_USER
    assert session.messages[3].content == (
        "<tool_response>\nsunny\n</tool_response>")
    assert session.messages[2].content.count("<tool_call>") == len(first.calls)
    # A turn that names none leaves them there, and is text.
    third = ask(client, "So?", session_id="agent", tools=[], tool_choice=None,
                max_tokens=8, temperature=0)
    assert third.reused >= (second.final.prompt_tokens - 64) // 64 * 64
    assert third.text and get(client, "agent").messages[0] == begin
    # Other ones take their place, and all of it is computed again.
    fourth = ask(client, "And now?", session_id="agent", tools=[tool(NOW)])
    assert {call.name for call in fourth.calls} == {"now"}
    changed = get(client, "agent").messages[0].content
    assert changed.startswith("Help. ") and "get_weather" not in changed
    assert fourth.final.turn == 4


def test_a_session_without_a_system_prompt_takes_tools(client):
    client.sessions.CreateSession(spb.CreateSessionRequest(id="plain"))
    first = ask(client, session_id="plain", tool_choice=named("now"))
    assert (first.final.prompt_tokens ==
            ask(client, max_tokens=1).final.prompt_tokens)
    second = ask(client, results("noon"), session_id="plain",
                 tool_choice=named("now"))
    known = first.final.prompt_tokens + first.final.generated_tokens
    assert second.reused >= (known - 64) // 64 * 64
    again = ask(client, (), session_id="plain", tool_choice=named("now"),
                regenerate=True)
    assert again.calls[0].arguments == second.calls[0].arguments
    assert again.final.turn == 3


def test_a_session_that_gets_tools_late_begins_anew(client):
    client.sessions.CreateSession(spb.CreateSessionRequest(id="late"))
    ask(client, "Hello. " * 40, session_id="late", tools=[], tool_choice=None,
        max_tokens=8)
    answer = ask(client, session_id="late", tool_choice=named("now"))
    assert answer.calls[0].name == "now"
    assert "get_weather" in get(client, "late").messages[0].content
    with fails_with(Code.ABORTED):
        ask(client, session_id="late", expected_turn=1)


def test_counting_tokens_knows_calls(client):
    call = pb.ToolCallDelta(name="now", arguments="{}")
    with_calls = [user(QUESTION), assistant([call]), *results("noon", "one")]
    as_text = [user(QUESTION),
               common_pb2.Message(
                   role=common_pb2.ROLE_ASSISTANT,
                   content='<tool_call>\n{"name": "now", "arguments": {}}\n'
                           "</tool_call>"),
               user("<tool_response>\nnoon\n</tool_response>\n"
                    "<tool_response>\none\n</tool_response>")]
    assert client.count_tokens(with_calls) == client.count_tokens(as_text)


@pytest.mark.parametrize("more, words", [
    ({"tools": [pb.Tool(name="a b")]}, "tools[0].name"),
    ({"tools": [pb.Tool(name="a", parameters="[")]}, "tools[0].parameters"),
    ({"tools": [pb.Tool(name="a", parameters='{"not": {}}', strict=True)]},
     "tools[0].parameters"),
    ({"tools": [pb.Tool(name="a")] * 129}, "tools"),
    ({"tools": []}, "tool_choice"),
    ({"tool_choice": named("none_such")}, "tool_choice"),
    ({"messages": [common_pb2.Message(
        role=common_pb2.ROLE_USER, content="x",
        tool_calls=[common_pb2.ToolCall(name="a")])]},
     "messages[0].tool_calls"),
    ({"messages": [user("x"), common_pb2.Message(
        role=common_pb2.ROLE_ASSISTANT,
        tool_calls=[common_pb2.ToolCall(name="")]), user("y")]},
     "messages[1].tool_calls[0].name"),
])
def test_tools_that_are_wrong(client, more, words):
    with fails_with(Code.INVALID_ARGUMENT, words):
        ask(client, **more)


def test_tools_of_nobody(client):
    with fails_with(Code.NOT_FOUND):
        ask(client, session_id="no-such-session")

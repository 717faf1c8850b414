"""Stored responses and conversations, by OpenAI's own Python client: what it saw
as complete is there after kill -9, whole, and goes on."""

import random
import threading
import time

import httpx2 as httpx  # that OpenAI's client has
import openai
import pytest
from xcache.v1 import sessions_pb2

import harness
from harness import params, wait_until
from openai_fixtures import HTTP, ai, client_of, server  # noqa: F401

ORDER = ["response.created", "response.in_progress",
         "response.output_item.added", "response.content_part.added",
         "response.output_text.delta", "response.output_text.done",
         "response.content_part.done", "response.output_item.done"]


def ask(ai, text="Tell me of the sea.", **more):
    more = {"model": "tiny", "max_output_tokens": 12, "temperature": 0, **more}
    return ai.responses.create(input=text, **more)


def texts(items):
    """(role, text) of a list of items, the oldest first."""
    return [(item.role, item.content[0].text) for item in items]


def history(ai, response):
    """All that was said, the response itself included."""
    items = ai.responses.input_items.list(response.id, order="asc", limit=100)
    return texts(items) + [("assistant", response.output_text)]


def assert_stored(ai, response):
    assert ai.responses.retrieve(response.id).to_dict() == response.to_dict()


def turns(*said):
    return [(("user", "assistant")[i % 2], text) for i, text in enumerate(said)]


def test_a_response_is_what_grpc_answers_and_stays(server, ai, client):
    response = ask(ai, metadata={"a": "b"}, instructions="Be brief.")
    other = client.chat(messages=[harness.system("Be brief."),
                                  harness.user("Tell me of the sea.")],
                        params=params(max_tokens=12))
    assert response.output_text == other.text
    assert response.object == "response"
    assert response.status in ("completed", "incomplete")
    assert response.usage.input_tokens == other.final.prompt_tokens
    assert response.usage.output_tokens == other.final.generated_tokens
    assert response.usage.total_tokens == (response.usage.input_tokens +
                                           response.usage.output_tokens)
    assert response.metadata == {"a": "b"} and response.temperature == 0
    assert response.instructions == "Be brief."
    assert response.max_output_tokens == 12 and response.model == "tiny"
    assert abs(response.created_at - time.time()) < 3600
    assert_stored(ai, response)
    # It is a session, as any other.
    session = client.sessions.ListSessions(
        sessions_pb2.ListSessionsRequest()).sessions[0]
    assert response.id.endswith(session.id)
    assert ai.responses.delete(response.id) is None
    for call in (ai.responses.retrieve, ai.responses.delete,
                 ai.responses.input_items.list):
        with pytest.raises(openai.NotFoundError) as caught:
            call(response.id)
        assert caught.value.code == "response_not_found"


def test_the_stream_has_openais_order(ai):
    whole = ask(ai)
    events = list(ask(ai, stream=True))
    kinds = [event.type for event in events]
    assert list(dict.fromkeys(kinds)) == ORDER + [f"response.{whole.status}"]
    assert kinds.count("response.output_text.delta") == (
        len(kinds) - len(ORDER))
    assert [event.sequence_number for event in events] == list(
        range(len(events)))
    assert "".join(event.delta for event in events
                   if event.type == "response.output_text.delta") == (
        whole.output_text)
    last = events[-1].response
    assert last.output_text == whole.output_text
    assert events[0].response.id == last.id
    assert events[0].response.status == "in_progress"
    assert events[0].response.output == []
    done = next(e for e in events if e.type == "response.output_item.done")
    assert done.item.to_dict() == last.output[0].to_dict()
    assert_stored(ai, last)
    # Its helper, which knows answers that ended alone.
    text = whole.output_text
    stop = {"stop": [text[len(text) // 2:][:3]]}
    with ai.responses.stream(model="tiny", input="Tell me of the sea.",
                             temperature=0, extra_body=stop) as stream:
        final = stream.get_final_response()
    assert final.status == "completed"
    assert final.output_text == text[:text.index(stop["stop"][0])]
    assert ai.responses.retrieve(final.id).output_text == final.output_text


def test_two_branches_of_one_response(ai):
    first = ask(ai, "One")
    second = ask(ai, "Two", previous_response_id=first.id)
    third = ask(ai, "Three", previous_response_id=second.id)
    other = ask(ai, "Four", previous_response_id=first.id)
    again = ask(ai, "Two", previous_response_id=first.id)
    assert other.previous_response_id == first.id
    assert history(ai, third) == turns(
        "One", first.output_text, "Two", second.output_text, "Three",
        third.output_text)
    assert history(ai, other) == turns("One", first.output_text, "Four",
                                       other.output_text)
    assert again.output_text == second.output_text
    assert len({r.id for r in (first, second, third, other, again)}) == 5
    # The last goes, and with it its text; those before stay.
    ai.responses.delete(third.id)
    assert history(ai, second)[-1] == ("assistant", second.output_text)
    ai.responses.delete(first.id)
    assert ask(ai, "Five", previous_response_id=second.id).output_text


def test_many_go_on_from_one_at_once(ai):
    first = ask(ai, "One")
    answers = [None] * 8
    def run(i):
        answers[i] = ask(ai, f"Number {i}", previous_response_id=first.id)
    threads = [threading.Thread(target=run, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, answer in enumerate(answers):
        assert history(ai, answer) == turns(
            "One", first.output_text, f"Number {i}", answer.output_text)
    assert len({answer.id for answer in answers}) == 8


def test_instructions_stay_until_others_come(ai):
    first = ask(ai, "One", instructions="Be brief.")
    # Not in its place: it keeps its own.
    assert ask(ai, "Two", previous_response_id=first.id,
               instructions="Be long.").instructions == "Be long."
    assert_stored(ai, first)
    kept = ask(ai, "Two", previous_response_id=first.id)
    assert kept.instructions == "Be brief."
    assert history(ai, kept)[0] == ("system", "Be brief.")
    other = ask(ai, "Two", previous_response_id=first.id,
                instructions="Be long.")
    assert other.instructions == "Be long."
    assert history(ai, other)[:2] == [("system", "Be long."), ("user", "One")]
    none = ask(ai, "Two", previous_response_id=first.id, instructions="")
    assert none.instructions is None
    assert history(ai, none)[0] == ("user", "One")
    same = ask(ai, "Two", previous_response_id=first.id,
               instructions="Be brief.")
    assert same.output_text == kept.output_text
    assert_stored(ai, first)


def test_conversations(ai, client):
    talk = ai.conversations.create(
        metadata={"topic": "sea"},
        items=[{"role": "developer", "content": "Be brief."}])
    assert talk.metadata == {"topic": "sea"}
    first = ask(ai, "One", conversation=talk.id)
    second = ask(ai, "Two", conversation={"id": talk.id})
    assert second.conversation.id == talk.id
    items = list(ai.conversations.items.list(talk.id, order="asc", limit=2))
    assert texts(items) == [("system", "Be brief."),
                            *turns("One", first.output_text, "Two",
                                   second.output_text)]
    assert items[-1].id == second.output[0].id
    assert ai.conversations.items.retrieve(
        items[1].id, conversation_id=talk.id).content[0].text == "One"
    # Its turns are a session's, and go on from there too.
    client.chat(talk.id, "Three")
    assert len(ai.conversations.items.list(talk.id).data) == 7
    # A response of it goes on elsewhere.
    other = ask(ai, "Other", previous_response_id=first.id)
    assert history(ai, other)[-2:] == [("user", "Other"),
                                       ("assistant", other.output_text)]
    assert len(ai.conversations.items.list(talk.id).data) == 7
    # Without a response its messages stay.
    ai.responses.delete(second.id)
    assert len(ai.conversations.items.list(talk.id).data) == 7
    assert ai.conversations.update(talk.id, metadata={"x": "y"}).metadata == {
        "x": "y"}
    assert ai.conversations.retrieve(talk.id).metadata == {"x": "y"}
    assert ai.conversations.delete(talk.id).deleted
    for call in (ai.conversations.retrieve, ai.conversations.delete):
        with pytest.raises(openai.NotFoundError) as caught:
            call(talk.id)
        assert caught.value.code == "conversation_not_found"
    with pytest.raises(openai.NotFoundError) as caught:
        ask(ai, conversation=talk.id)
    assert caught.value.param == "conversation"


def test_what_is_not_to_be_stored_is_not(server, ai, client):
    first = ask(ai, "One")
    before = server.metrics().sum("xcache_sessions")
    for more in ({}, {"previous_response_id": first.id}):
        response = ask(ai, "Two", store=False, **more)
        assert response.output_text and response.store is False
        with pytest.raises(openai.NotFoundError):
            ai.responses.retrieve(response.id)
        with pytest.raises(openai.BadRequestError) as caught:
            ask(ai, "Three", previous_response_id=response.id)
        assert caught.value.code == "previous_response_not_found"
        assert caught.value.param == "previous_response_id"
    assert server.metrics().sum("xcache_sessions") == before
    assert response.output_text == ask(
        ai, "Two", previous_response_id=first.id).output_text


def test_pages_of_items(ai):
    items = [{"role": ("user", "assistant")[i % 2], "content": str(i)}
             for i in range(9)]
    response = ask(ai, items)
    def page(**more):
        return ai.responses.input_items.list(response.id, **more)
    assert [item.content[0].text for item in page(limit=4).data] == list("8765")
    assert page(limit=4).has_more
    assert "".join(i.content[0].text for i in page(limit=2)) == "876543210"
    last = page(limit=100, order="asc")
    assert not last.has_more and len(last.data) == 9
    for wrong in ({"limit": 0}, {"limit": 101}, {"order": "up"},
                  {"after": "none"}):
        with pytest.raises(openai.BadRequestError) as caught:
            page(**wrong)
        assert caught.value.param == next(iter(wrong))


def test_log_probabilities(ai):
    response = ask(ai, top_logprobs=2,
                   include=["message.output_text.logprobs"])
    found = response.output[0].content[0].logprobs
    assert len(found) in (response.usage.output_tokens,
                          response.usage.output_tokens - 1)
    assert all(len(token.top_logprobs) == 2 for token in found)
    streamed = [token.token for event in ask(ai, top_logprobs=2, stream=True)
                if event.type == "response.output_text.delta"
                for token in event.logprobs]
    assert streamed == [token.token for token in found]


WRONG = {
    "input": [None, 5, [], [1], [{"role": "king", "content": "x"}],
              [{"type": "function_call_output", "output": 5}],
              [{"type": "function_call", "name": "a b", "arguments": "{}"}],
              [{"type": "reasoning", "summary": []}],
              [{"role": "user", "content": [{"type": "input_image"}]}],
              [{"role": "assistant", "content": "mine"}]],
    "instructions": [5, ["x"]],
    "store": ["yes"],
    "conversation": [5, {}, {"id": 5}],
    "previous_response_id": [5, "x" * 300, "resp_none", "resp_0_../etc", "é"],
    "background": [True],
    "truncation": ["auto"],
    "text": [{"format": {"type": "yaml"}}, {"format": 5}, 5],
    "tools": [[{"type": "web_search"}], [{"type": "function"}], "all"],
    "max_output_tokens": [0, "many"],
    "metadata": [5, {"a": 5}, {"a": "x" * 3000}],
    "top_logprobs": [21],
    "temperature": [3],
    "n": [2],
}


@pytest.mark.parametrize("field", WRONG)
def test_wrong_values_are_refused_by_name(ai, field):
    for value in WRONG[field]:
        with pytest.raises(openai.BadRequestError) as caught:
            ask(ai, extra_body={field: value})
        error = caught.value
        assert error.type == "invalid_request_error"
        # Which roles may follow is the template's matter.
        if value != WRONG["input"][-1]:
            assert (error.param or "").startswith(field), (value, error)


def test_ids_and_methods_that_there_are_not(server, ai):
    with httpx.Client(trust_env=False,
                      base_url=f"http://{server.http_address}/v1") as http:
        for path in ("responses/x", "responses/resp_a_b%00", "responses/%ff",
                     "responses/resp__", "conversations/%2e%2e",
                     f"conversations/{'a' * 300}"):
            assert http.get(path).status_code == 404, path
            assert http.delete(path).status_code == 404, path
        for method, path, status in (
                ("GET", "responses", 405), ("PUT", "responses/x", 405),
                ("GET", "responses/", 404), ("GET", "responses/x/y", 404),
                ("POST", "responses/x/input_items", 405),
                ("GET", "conversations", 405),
                ("GET", "conversations/x/items/", 404),
                ("POST", "conversations/x/items", 405)):
            assert http.request(method, path).status_code == status, path
        assert http.post("responses", content=b"{").status_code == 415
        assert http.post("conversations", json=[]).status_code == 400
        assert http.post("conversations", json={
            "items": [{"role": "assistant", "content": 5}]}
        ).json()["error"]["param"] == "items[0].content"
        # A failure before the first event is a status.
        assert http.post("responses", json={
            "input": "word " * 20000, "stream": True}).status_code == 400


def test_another_tenant_has_none_of_it(tiny_model, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text("secret alpha\nother beta\n"
                      "tenant beta sessions=1\n")
    tokens.chmod(0o600)
    with harness.Server(tiny_model, tmp_path, *HTTP, "--token-file",
                        tokens) as server:
        mine, theirs = client_of(server, "secret"), client_of(server, "other")
        response = ask(mine)
        talk = mine.conversations.create()
        for call in (theirs.responses.retrieve, theirs.responses.delete):
            with pytest.raises(openai.NotFoundError):
                call(response.id)
        with pytest.raises(openai.NotFoundError):
            theirs.conversations.retrieve(talk.id)
        with pytest.raises(openai.BadRequestError):
            ask(theirs, previous_response_id=response.id)
        with pytest.raises(openai.NotFoundError):
            ask(theirs, conversation=talk.id)
        with pytest.raises(openai.AuthenticationError):
            client_of(server, "wrong").responses.retrieve(response.id)
        assert_stored(mine, response)
        # A response is a session; one that goes on is not one more.
        first = ask(theirs)
        ask(theirs, previous_response_id=first.id)
        with pytest.raises(openai.RateLimitError) as caught:
            ask(theirs)
        assert caught.value.code == "tenant_sessions"
        assert ask(theirs, store=False).output_text


def test_responses_go_with_their_session(tiny_model, tmp_path):
    with harness.Server(tiny_model, tmp_path, *HTTP,
                        "--session-ttl", "1") as server:
        ai = client_of(server)
        response = ask(ai)
        def gone():
            try:
                ai.responses.retrieve(response.id)
            except openai.NotFoundError:
                return True
        wait_until(gone, 30, "the response to expire")


class Talker(threading.Thread):
    """Asks until the server is gone: new responses, from the last and from
    older ones, in conversations, whole and as streams."""

    def __init__(self, ai, seen, rng):
        super().__init__()
        self.ai, self.seen, self.rng = ai, seen, rng
        self.problem = None
        self.begun = []  # ids that were told, and no end of them

    def run(self):
        try:
            while True:
                self.turn()
        except openai.APIConnectionError:
            pass
        except httpx.TransportError:
            pass
        except Exception as error:  # whatever else is a finding
            self.problem = error

    def turn(self):
        rng = self.rng
        before = rng.choice([None, *self.seen[-3:], *self.seen[:1]])
        if before is not None and sum(len(t) for _, t in before[1]) > 1000:
            before = None  # the context has an end
        more = {"max_output_tokens": rng.randrange(1, 40), "temperature": 1,
                "extra_body": {"seed": rng.randrange(1 << 30)}}
        if before is not None:
            more["previous_response_id"] = before[0].id
        text = " ".join(rng.choices("sea tide ship sand gull wave".split(),
                                    k=rng.randrange(1, 40)))
        if rng.random() < 0.5:
            response = ask(self.ai, text, **more)
        else:
            for event in ask(self.ai, text, stream=True, **more):
                if event.type == "response.created":
                    self.begun.append((event.response.id, before, text))
            response = event.response
            assert event.type in ("response.completed", "response.incomplete")
            self.begun.pop()
        said = (before[1] if before else []) + turns(text, response.output_text)
        self.seen.append((response, said))


def check_whole(ai, response, said):
    assert_stored(ai, response)
    assert history(ai, response) == said


def test_complete_responses_survive_kills(tiny_model, tmp_path, seed):
    """Of those whose end nobody saw each is there whole, or not at all."""
    rounds = int(harness.campaign("RESPONSES_ROUNDS", 4))
    rng = random.Random(seed)
    # What each talker has seen; a few are asked for anew after each kill.
    seen = [[] for _ in range(3)]
    total = unseen = continued = 0
    server = harness.Server(tiny_model, tmp_path, *HTTP)
    try:
        for _ in range(rounds):
            talkers = [Talker(client_of(server), mine, random.Random(
                rng.randrange(1 << 30))) for mine in seen]
            before = sum(map(len, seen))
            for talker in talkers:
                talker.start()
            # Under load: some were answered, and more are under way.
            wait_until(lambda: sum(map(len, seen)) > before + 3 or
                       not all(t.is_alive() for t in talkers))
            time.sleep(rng.uniform(0, 0.5))
            server.kill()
            for talker in talkers:
                talker.join()
                assert talker.problem is None, talker.problem
            total += sum(map(len, seen)) - before
            server = harness.Server(tiny_model, tmp_path, *HTTP)
            ai = client_of(server)
            for talker, mine in zip(talkers, seen):
                for response, said in mine:
                    check_whole(ai, response, said)
                for response, said in mine[-1:] + mine[:1]:
                    text = "And now?"
                    after = ask(ai, text, previous_response_id=response.id)
                    assert history(ai, after) == said + turns(
                        text, after.output_text)
                    continued += 1
                for lost, parent, text in talker.begun:
                    try:
                        response = ai.responses.retrieve(lost)
                    except openai.NotFoundError:
                        continue
                    check_whole(ai, response, (parent[1] if parent else []) +
                                turns(text, response.output_text))
                    unseen += 1
                # Long enough: the next round's are new ones.
                if len(mine) > 60:
                    mine.clear()
            assert server.metrics().sum("xcache_corrupt_sessions_total") == 0
        server.stop()
    finally:
        server.kill()
    print(f"{rounds} kills, {total} responses seen, {continued} gone on with, "
          f"{unseen} more that were stored and whose end nobody heard")

"""Sessions over HTTP, and what the cache did for an answer."""

import json

import pytest
import requests

import harness
from harness import user
from openai_fixtures import server  # noqa: F401
from xcache.v1 import sessions_pb2


@pytest.fixture
def ask(server):
    """(status, JSON) of a request."""
    def call(method, path, body=None):
        answer = requests.request(
            method, f"http://{server.http_address}/v1/{path}", json=body,
            timeout=60)
        return answer.status_code, answer.json()
    return call


def test_a_session_is_what_grpc_says(ask, client):
    client.sessions.CreateSession(sessions_pb2.CreateSessionRequest(id="one"))
    client.chat("one", [user("Tell me of the sea. " * 20)])
    status, one = ask("GET", "xcache/sessions/one")
    info = client.sessions.GetSession(sessions_pb2.GetSessionRequest(id="one"))
    assert status == 200
    for name in ("id", "turn", "num_tokens", "num_messages", "codec", "pinned",
                 "page_bytes", "in_memory", "title"):
        assert one[name] == getattr(info, name), name
    assert one["created_at"] == info.create_time.seconds
    assert one["durability"] == "local" and not one["needs_migration"]
    pages = one["num_tokens"] // 64
    assert pages > 0 and one["page_bytes"] > 0
    assert one["kv_fp16_bytes"] % pages == 0
    assert one["kv_fp16_bytes"] > one["page_bytes"]

    assert ask("POST", "xcache/sessions/one",
               {"title": "Sea", "pinned": True})[1]["title"] == "Sea"
    info = client.sessions.GetSession(sessions_pb2.GetSessionRequest(id="one"))
    assert info.title == "Sea" and info.pinned
    # What is not said stays.
    status, one = ask("POST", "xcache/sessions/one", {"pinned": False,
                                                      "ttl_seconds": 3600})
    assert (one["title"], one["pinned"]) == ("Sea", False)
    assert 3500 < one["expires_at"] - one["updated_at"] < 3700

    status, fork = ask("POST", "xcache/sessions/one/fork",
                       {"id": "two", "num_messages": 1})
    assert (status, fork["id"], fork["num_messages"]) == (200, "two", 1)
    assert ask("POST", "xcache/sessions/one/fork", {"id": "two"})[0] == 409
    assert ask("DELETE", "xcache/sessions/two") == (
        200, {"id": "two", "object": "xcache.session.deleted",
              "deleted": True})
    assert ask("GET", "xcache/sessions/two")[0] == 404
    assert ask("GET", "xcache/sessions/one")[0] == 200


def test_pages_of_the_list(ask, client):
    for i in range(5):
        client.sessions.CreateSession(
            sessions_pb2.CreateSessionRequest(id=f"listed-{i}"))
    found, after = [], ""
    while after is not None:
        _, page = ask("GET", f"xcache/sessions?limit=2{after}")
        assert len(page["data"]) <= 2
        assert page["has_more"] == (page["next"] is not None)
        found += [one["id"] for one in page["data"]]
        after = page["next"] and f"&after={page['next']}"
    assert len(found) == len(set(found))
    assert {f"listed-{i}" for i in range(5)} <= set(found)


@pytest.mark.parametrize("method, path, body, status, word", [
    ("POST", "xcache/sessions/one", {}, 400, "nothing to change"),
    ("POST", "xcache/sessions/one", {"pinned": 1}, 400, "pinned"),
    ("POST", "xcache/sessions/one", {"title": "x" * 300}, 400, "title"),
    ("POST", "xcache/sessions/one", {"ttl_seconds": -1}, 400, "ttl_seconds"),
    ("POST", "xcache/sessions/one", [1], 400, "object"),
    ("POST", "xcache/sessions/none", {"pinned": True}, 404, "none"),
    ("POST", "xcache/sessions/a b", {"pinned": True}, 400, "id"),
    ("POST", "xcache/sessions/one/fork", {"id": "no/id"}, 400, "id"),
    ("POST", "xcache/sessions/one/fork", {"num_messages": "2"}, 400,
     "num_messages"),
    ("POST", "xcache/sessions/one/fork", {"num_messages": 99}, 400, "messages"),
    ("POST", "xcache/sessions/none/fork", {}, 404, "none"),
    ("DELETE", "xcache/sessions/none", None, 404, "none"),
    ("GET", "xcache/sessions?limit=0", None, 400, "limit"),
    ("POST", "xcache/sessions", {}, 405, "GET"),
    ("PUT", "xcache/sessions/one", {}, 405, "GET"),
    ("GET", "xcache/sessions/one/two", None, 404, "there is no"),
])
def test_bad_requests(ask, client, method, path, body, status, word):
    try:
        client.sessions.CreateSession(
            sessions_pb2.CreateSessionRequest(id="one"))
    except harness.grpc.RpcError as error:
        assert error.code() == harness.grpc.StatusCode.ALREADY_EXISTS
    found, answer = ask(method, path, body)
    assert found == status, answer
    assert word in answer["error"]["message"], answer


def test_what_the_cache_did(server, ask):
    """Chats and responses tell, by where it was found."""
    messages = [{"role": "user", "content": "Tell me of the land. " * 20}]
    chat = {"messages": messages, "max_tokens": 4, "temperature": 0}
    for prompt_known in (False, True):
        _, answer = ask("POST", "chat/completions", chat)
        did, usage = answer["xcache"], answer["usage"]
        reused = sum(did["reused"].values())
        assert reused == usage["prompt_tokens_details"]["cached_tokens"]
        assert (reused > 0) == prompt_known
        assert did["prefilled_tokens"] + reused >= usage["prompt_tokens"] - 1
        assert did["ttft_us"] > 0 and did["durability"] == "none"
    _, first = ask("POST", "responses", {"input": "x" * 200,
                                         "max_output_tokens": 4})
    events = requests.post(
        f"http://{server.http_address}/v1/responses", timeout=60, json={
            "input": "More.", "max_output_tokens": 4, "stream": True,
            "previous_response_id": first["id"]}).text
    last = json.loads(events.rstrip().rpartition("data: ")[2])
    assert last["type"] in ("response.completed", "response.incomplete")
    assert sum(last["xcache"]["reused"].values()) == (
        last["response"]["usage"]["input_tokens_details"]["cached_tokens"]) > 64
    assert last["xcache"]["durability"] == "local"
    # What is stored is the response alone.
    assert last["response"] == ask(
        "GET", f"responses/{last['response']['id']}")[1]

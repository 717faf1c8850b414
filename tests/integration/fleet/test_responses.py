"""Stored responses and conversations of the HTTP API are sessions: any server of a
fleet has them, goes on from them, and deletes them."""

import json
import urllib.error
import urllib.request

import pytest

from fleet import Fleet

HTTP = ("--http-listen", "127.0.0.1:0")
LONG = "The river runs under the stone bridge and past the mill. " * 12


def call(replica, path, body=None, method=None):
    request = urllib.request.Request(
        f"http://{replica.server.http_address}/v1/{path}",
        data=None if body is None else json.dumps(body).encode(),
        headers={"content-type": "application/json"}, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=120) as response:
        return json.load(response)


def respond(replica, text, **more):
    return call(replica, "responses", {
        "model": "tiny", "input": text, "temperature": 0,
        "max_output_tokens": 20, **more})


def said(response):
    return response["output"][0]["content"][0]["text"]


@pytest.fixture
def replicas(tiny_model, tmp_path, store):
    with Fleet(tiny_model, tmp_path, store=store, balanced=False,
               flags=HTTP) as fleet:
        yield fleet.add(), fleet.add()


def test_a_response_goes_on_at_another_server(replicas):
    a, b = replicas
    first = respond(a, LONG, instructions="Be brief.")
    twin = respond(a, "And then?", previous_response_id=first["id"])
    a.kill()
    found = call(b, f"responses/{first['id']}")
    assert said(found) == said(first)
    assert found["instructions"] == "Be brief."
    after = respond(b, "And then?", previous_response_id=first["id"])
    assert said(after) == said(twin)
    cached = after["usage"]["input_tokens_details"]["cached_tokens"]
    assert cached >= first["usage"]["input_tokens"] // 64 * 64 > 0
    items = call(b, f"responses/{after['id']}/input_items?order=asc")["data"]
    assert [item["role"] for item in items] == [
        "system", "user", "assistant", "user"]
    # What is deleted here is gone there.
    call(b, f"responses/{after['id']}", method="DELETE")
    a.start()
    assert said(call(a, f"responses/{twin['id']}")) == said(twin)
    with pytest.raises(urllib.error.HTTPError) as caught:
        call(a, f"responses/{after['id']}")
    assert caught.value.code == 404


def test_servers_take_turns_in_a_conversation(replicas):
    conversation = call(replicas[0], "conversations", {})["id"]
    for turn in range(4):
        response = respond(replicas[turn % 2], f"{LONG} {turn}?",
                           conversation=conversation)
        assert response["conversation"]["id"] == conversation
    for replica in replicas:
        items = call(replica, f"conversations/{conversation}/items"
                     "?order=asc&limit=100")["data"]
        assert [item["role"] for item in items] == ["user", "assistant"] * 4
        assert items[-1]["content"][0]["text"] == said(response)

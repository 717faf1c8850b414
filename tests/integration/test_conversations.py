"""Conversations outlive models, servers and full contexts; answers are redone,
or kept in part."""

import json

import grpc
import pytest
from google.protobuf import duration_pb2
from xcache.v1 import common_pb2
from xcache.v1 import inference_pb2 as pb
from xcache.v1 import sessions_pb2 as spb

import conftest
import harness
from harness import fails_with, params, user

Code = grpc.StatusCode
LOCAL = common_pb2.DURABILITY_LOCAL


@pytest.fixture(scope="module")
def terse_model(models):
    """Another vocabulary than tiny_model's, so that text has other tokens, and
    less context."""
    return conftest.make_model(models / "terse.gguf", "seed=3", "vocab=300",
                               "context=512")


def create(client, name, **more):
    return client.sessions.CreateSession(
        spb.CreateSessionRequest(id=name, **more))


def get(client, name):
    return client.sessions.GetSession(
        spb.GetSessionRequest(id=name, with_messages=True))


def texts(session):
    return [(m.role, m.content) for m in session.messages]


def export(client, name, **more):
    return client.sessions.ExportSession(
        spb.ExportSessionRequest(id=name, **more)).document


def migrate(client, name, **more):
    return client.sessions.MigrateSession(
        spb.MigrateSessionRequest(id=name, **more))


def logprobs(**more):
    return params(logprobs=1, **more)


def test_sessions_live_through_their_methods(client):
    session = create(client, "life", system_prompt="s", title="a title",
                     ttl=duration_pb2.Duration(seconds=3600))
    assert session.title == "a title"
    lifetime = session.expire_time.seconds - session.create_time.seconds
    assert 3590 <= lifetime <= 3600
    assert not create(client, "ever",
                      ttl=duration_pb2.Duration()).HasField("expire_time")
    assert create(client, "").id
    one = client.chat("life", "one " * 80)
    client.chat("life", "two")
    assert client.sessions.PinSession(spb.PinSessionRequest(id="life")).pinned
    assert not client.sessions.UnpinSession(
        spb.UnpinSessionRequest(id="life")).pinned
    client.sessions.FlushSession(spb.FlushSessionRequest(id="life"))
    flushed = client.sessions.GetSession(spb.GetSessionRequest(id="life"))
    assert not flushed.in_memory and flushed.page_bytes > 0

    fork = client.sessions.ForkSession(spb.ForkSessionRequest(
        id="life", new_id="fork", num_messages=3))
    assert (fork.num_messages, fork.turn) == (3, 1)
    messages = client.sessions.GetSession(spb.GetSessionRequest(
        id="fork", with_messages=True)).messages
    assert messages[2].content == one.text
    # The fork goes on as the original did, and reuses its pages.
    again = client.chat("fork", "two")
    whole = client.sessions.GetSession(spb.GetSessionRequest(
        id="life", with_messages=True))
    assert again.text == whole.messages[4].content
    assert again.reused >= 64
    client.sessions.DeleteSession(spb.DeleteSessionRequest(id="fork"))
    with fails_with(Code.NOT_FOUND, "fork"):
        client.sessions.GetSession(spb.GetSessionRequest(id="fork"))


def test_a_conversation_goes_on_with_another_model(tiny_model, terse_model,
                                                   tmp_path):
    with harness.Server(tiny_model, tmp_path) as server:
        client = server.client()
        create(client, "s", system_prompt="Be brief.", title="orders")
        for i in range(8):
            client.chat("s", f"question number {i} of the conversation")
        old = get(client, "s")
        assert not old.needs_migration and old.durability == LOCAL
        assert old.model_fp == client.inference.GetModelInfo(
            pb.GetModelInfoRequest()).model_fp
        server.stop()
    with harness.Server(terse_model, tmp_path) as server:
        client = server.client()
        info = client.inference.GetModelInfo(pb.GetModelInfoRequest())
        # Shown, listed, exported; and a turn says what helps.
        shown = get(client, "s")
        assert texts(shown) == texts(old) and shown.needs_migration
        assert shown.model_fp == old.model_fp != info.model_fp
        listed = client.sessions.ListSessions(spb.ListSessionsRequest())
        assert [(s.id, s.needs_migration) for s in listed.sessions] == [
            ("s", True)]
        document = json.loads(export(client, "s"))
        assert document["model_fp"] == old.model_fp
        assert [m["content"] for m in document["messages"]] == [
            content for _, content in texts(old)]
        with fails_with(Code.FAILED_PRECONDITION, old.model_fp, info.model_fp,
                        "MigrateSession"):
            client.chat("s", "go on")
        # It is too long for this model, whole.
        history = [common_pb2.Message(role=r, content=c)
                   for r, c in texts(old)]
        count = client.count_tokens(history, add_generation_prompt=False)
        assert count > 512
        with fails_with(Code.INVALID_ARGUMENT, str(count), "511",
                        "keep_last_messages"):
            migrate(client, "s")
        assert get(client, "s").model_fp == old.model_fp
        done = migrate(client, "s", keep_last_messages=4)
        assert done.retokenized and done.session.retokenized
        assert done.tokens_before == old.num_tokens
        assert done.messages_dropped == 12
        kept = [history[0]] + history[-4:]
        assert done.tokens_after == client.count_tokens(
            kept, add_generation_prompt=False)
        assert not done.session.needs_migration
        assert done.session.title == "orders" and done.session.turn == 8
        again = migrate(client, "s")
        assert not again.retokenized and not again.messages_dropped
        # It is answered as its text is, said anew.
        answer = client.chat("s", "go on", expected_turn=8, params=logprobs())
        plain = client.chat(messages=kept + [user("go on")], params=logprobs())
        assert answer.bits == plain.bits and answer.final.turn == 9
        server.kill()
    with harness.Server(terse_model, tmp_path) as server:
        after = get(server.client(), "s")
        assert after.turn == 9 and after.messages[-1].content == answer.text
        server.client().sessions.DeleteSession(
            spb.DeleteSessionRequest(id="s"))


def test_an_import_goes_on_bit_by_bit(tiny_model, terse_model, tmp_path):
    with harness.Server(tiny_model, tmp_path, store="first") as server:
        client = server.client()
        create(client, "s", system_prompt="Be brief.",
               codec="xquant-gqa:bits=3")
        for i in range(3):
            client.chat("s", f"question {i} " * 5,
                        params=params(temperature=0.9, seed=i))
        document = export(client, "s")
        text = export(client, "s", text_only=True)
        before = get(client, "s")
        wanted = client.chat("s", "go on", params=logprobs())
    with harness.Server(tiny_model, tmp_path, store="second") as server:
        client = server.client()
        made = client.sessions.ImportSession(
            spb.ImportSessionRequest(document=document))
        assert made.id == "s" and made.durability == LOCAL
        assert not made.retokenized and made.num_tokens == before.num_tokens
        assert (made.codec, made.turn) == (before.codec, 3)
        assert made.create_time.seconds == before.create_time.seconds
        assert texts(get(client, "s")) == texts(before)
        answer = client.chat("s", "go on", expected_turn=3, params=logprobs())
        assert answer.bits == wanted.bits
        with fails_with(Code.ALREADY_EXISTS, "'s'"):
            client.sessions.ImportSession(
                spb.ImportSessionRequest(document=document))
        # Of the text alone it is the same conversation, of whatever tokens.
        made = client.sessions.ImportSession(
            spb.ImportSessionRequest(document=text, id="text"))
        assert texts(get(client, "text")) == texts(before)
        client.chat("text", "go on")
        for broken in ["", "{", "[]", document[:-2], document + "x",
                       document.replace('"user"', '"tool"')]:
            with fails_with(Code.INVALID_ARGUMENT, "document"):
                client.sessions.ImportSession(
                    spb.ImportSessionRequest(document=broken, id="broken"))
        with fails_with(Code.INVALID_ARGUMENT):
            client.sessions.ImportSession(
                spb.ImportSessionRequest(document=document, id="a b"))
        with fails_with(Code.NOT_FOUND, "broken"):
            get(client, "broken")
    with harness.Server(terse_model, tmp_path, store="third") as server:
        client = server.client()
        made = client.sessions.ImportSession(
            spb.ImportSessionRequest(document=document))
        assert made.retokenized and not made.needs_migration
        assert texts(get(client, "s")) == texts(before)
        assert client.chat("s", "go on").final.turn == 4


def test_a_full_context_goes_on_in_a_fork(terse_model, tmp_path):
    with harness.Server(terse_model, tmp_path) as server:
        client = server.client()
        create(client, "full", system_prompt="Be brief.")
        with fails_with(Code.INVALID_ARGUMENT, "511"):
            for i in range(100):
                client.chat("full", f"question {i} of the conversation",
                            params=params(temperature=0.9, seed=i))
        full = get(client, "full")
        fork = client.sessions.ForkSession(spb.ForkSessionRequest(
            id="full", new_id="fork", keep_last_messages=4))
        kept = texts(full)[:1] + texts(full)[-4:]
        assert texts(get(client, "fork")) == kept
        assert (fork.num_messages, fork.turn) == (5, 2)
        assert not fork.retokenized
        # Its tokens are those of the original, message by message.
        tokens = {name: [m["tokens"] for m in json.loads(
            export(client, name))["messages"]] for name in ["full", "fork"]}
        assert tokens["fork"] == tokens["full"][:1] + tokens["full"][-4:]
        assert client.chat("fork", "go on").final.turn == 3
        assert get(client, "full").turn == full.turn


def test_an_answer_is_redone(client):
    create(client, "redo")
    client.chat("redo", "one " * 40)
    first = client.chat("redo", "two", params=params(seed=1, temperature=1.2))
    before = get(client, "redo")
    client.sessions.ForkSession(spb.ForkSessionRequest(
        id="redo", new_id="unanswered", num_messages=3))
    redone = client.chat("redo", regenerate=True, expected_turn=2,
                         params=logprobs(seed=2, temperature=1.2))
    assert redone.final.turn == 3 and redone.text != first.text
    assert redone.reused >= 64
    after = get(client, "redo")
    assert texts(after)[:-1] == texts(before)[:-1]
    assert after.messages[-1].content == redone.text
    # A retry of it is not applied twice.
    with fails_with(Code.ABORTED):
        client.chat("redo", regenerate=True, expected_turn=2)
    # It is what the conversation would have been answered in the first place.
    first_place = client.chat("unanswered", regenerate=True, expected_turn=1,
                              params=logprobs(seed=2, temperature=1.2))
    assert redone.bits == first_place.bits
    with fails_with(Code.INVALID_ARGUMENT, "regenerate"):
        client.chat("redo", "three", regenerate=True)
    create(client, "empty", system_prompt="Be brief.")
    with fails_with(Code.FAILED_PRECONDITION, "empty"):
        client.chat("empty", regenerate=True)


def start_long_chat(client, name, **more):
    stream = client.inference.Chat(pb.ChatRequest(
        session_id=name, messages=[user("go on")],
        params=params(max_tokens=6000, ignore_eos=True), **more))
    next(stream)
    return stream


def test_a_cancelled_answer_is_kept_where_it_is_asked_for(slow_model, tmp_path):
    with harness.Server(slow_model, tmp_path, "--drain-seconds", 0) as server:
        client = server.client()
        create(client, "kept")
        create(client, "gone")
        start_long_chat(client, "gone").cancel()
        stream = start_long_chat(client, "kept", keep_partial=True)
        stream.cancel()
        session = harness.wait_until(
            lambda: (s := get(client, "kept")).turn and s, what="the turn")
        assert [m.role for m in session.messages] == [
            common_pb2.ROLE_USER, common_pb2.ROLE_ASSISTANT]
        partial = session.messages[-1].content
        begun = partial.rstrip("\ufffd")  # it may end within a character
        # What was generated so far, token for token: its beginning is the
        # whole answer's.
        whole = client.chat(messages="go on",
                            params=params(max_tokens=8, ignore_eos=True))
        length = min(len(begun), len(whole.text.rstrip("\ufffd")))
        assert length and whole.text[:length] == begun[:length]
        assert get(client, "gone").turn == 0
        # The server's end keeps it as well, and says so.
        create(client, "ended")
        stream = start_long_chat(client, "ended", keep_partial=True)
        server.process.terminate()
        final = harness.Answer(stream).final
        assert final.finish_reason == pb.FINISH_REASON_CANCELLED
        assert final.turn == 1 and final.durability == LOCAL
        assert server.process.wait(timeout=60) == 0
    with harness.Server(slow_model, tmp_path) as server:
        client = server.client()
        kept = get(client, "kept")
        assert (kept.turn, kept.messages[-1].content) == (1, partial)
        assert get(client, "ended").turn == 1
        assert client.chat("kept", "and?").final.turn == 2


def test_a_session_is_updated(client):
    create(client, "updated")
    updated = client.sessions.UpdateSession(
        spb.UpdateSessionRequest(id="updated", title="a name"))
    assert updated.title == "a name" and updated.durability == LOCAL
    assert updated.HasField("expire_time")
    request = spb.UpdateSessionRequest(id="updated")
    request.ttl.SetInParent()  # zero: never
    updated = client.sessions.UpdateSession(request)
    assert updated.title == "a name" and not updated.HasField("expire_time")
    for bad in [spb.UpdateSessionRequest(id="updated", title="x" * 257),
                spb.UpdateSessionRequest(id="")]:
        with fails_with(Code.INVALID_ARGUMENT):
            client.sessions.UpdateSession(bad)
    request.ttl.seconds = -1
    with fails_with(Code.INVALID_ARGUMENT, "ttl"):
        client.sessions.UpdateSession(request)

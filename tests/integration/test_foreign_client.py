"""A client that knows nothing but the proto files: every method, every error
code, and at the end the servers' own metrics as the witness of both."""

import collections
import math
import signal
import subprocess
import threading
import time

import grpc
import pytest
from google.protobuf import duration_pb2
from grpc_health.v1 import health_pb2
from grpc_health.v1 import health_pb2_grpc
from xcache.v1 import common_pb2
from xcache.v1 import inference_pb2 as pb
from xcache.v1 import sessions_pb2 as spb

import harness
from harness import fails_with, params, user

Code = grpc.StatusCode

# What all servers of this module say that they counted, and what the tests
# below saw with their own eyes.
COUNTED = collections.Counter()
EXPECTED = set()


def note(server, *pairs):
    """Adds a server's counts before it goes, and what it must have counted."""
    counts = server.metrics().requests()
    for pair in pairs:
        assert counts[pair] > 0, f"{pair} was not counted: {counts}"
    EXPECTED.update(pairs)
    COUNTED.update(counts)


@pytest.fixture(scope="module")
def server(tiny_model, tmp_path_factory):
    with harness.Server(tiny_model, tmp_path_factory.mktemp("foreign"),
                        "--max-queue-requests", 8) as running:
        yield running


@pytest.fixture(scope="module")
def slow_server(slow_model, tmp_path_factory):
    with harness.Server(slow_model, tmp_path_factory.mktemp("slow"),
                        "--max-queue-requests", 1) as running:
        yield running


def create(client, **more):
    return client.sessions.CreateSession(spb.CreateSessionRequest(**more))


def long_params(**more):
    return params(max_tokens=6000, ignore_eos=True, **more)


def long_chat(client, session_id="", text="go on", **more):
    """A stream that takes seconds; its first response has come."""
    stream = client.inference.Chat(pb.ChatRequest(
        session_id=session_id, messages=[user(text)], params=long_params()),
        **more)
    next(stream)
    return stream


# Inference.


def test_chat_of_a_session(client):
    session = create(client, id="chat", system_prompt="Be brief.")
    first = client.chat("chat", "hello", expected_turn=0,
                        params=params(logprobs=3, temperature=0.8, seed=5))
    assert first.final.turn == 1
    assert first.final.seed == 5
    assert first.final.durability == common_pb2.DURABILITY_LOCAL
    assert first.final.generated_tokens >= len(first.tokens) > 0
    assert first.final.prefilled_tokens > 0
    assert first.final.timings.ttft_us > 0
    assert all(len(t.top) == 2 for t in first.tokens)
    assert all(t.logprob <= 0 for t in first.tokens)
    second = client.chat("chat", "and now?", expected_turn=1)
    assert second.final.turn == 2
    assert second.final.prompt_tokens > first.final.prompt_tokens
    assert session.num_messages == 1
    messages = client.sessions.GetSession(
        spb.GetSessionRequest(id="chat", with_messages=True)).messages
    assert [m.content for m in messages] == [
        "Be brief.", "hello", first.text, "and now?", second.text]
    assert [m.role for m in messages] == [
        common_pb2.ROLE_SYSTEM, common_pb2.ROLE_USER, common_pb2.ROLE_ASSISTANT,
        common_pb2.ROLE_USER, common_pb2.ROLE_ASSISTANT]


def test_chat_of_a_whole_history(client):
    history = [harness.system("Be brief."), user("hello " * 60)]
    first = client.chat(messages=history, params=params(logprobs=1))
    again = client.chat(messages=history, params=params(logprobs=1))
    anew = client.chat(messages=history,
                       params=params(logprobs=1, no_cache=True))
    assert first.final.prompt_tokens == client.count_tokens(history) > 128
    assert first.final.turn == 0
    assert first.bits == again.bits == anew.bits
    assert again.reused >= 64
    assert anew.reused == 0


def test_an_unset_seed_is_chosen_and_returned(client):
    sampling = pb.SamplingParams(temperature=1.5)
    request = pb.GenerationParams(sampling=sampling, max_tokens=12, logprobs=1)
    first = client.chat(messages="hi", params=request)
    request.sampling.seed = first.final.seed
    assert client.chat(messages="hi", params=request).bits == first.bits
    other = client.chat(messages="hi", params=pb.GenerationParams(
        sampling=sampling, max_tokens=12, logprobs=1))
    assert other.final.seed != first.final.seed


def test_deltas_are_utf8_and_make_the_text(client):
    # Random weights emit broken sequences of bytes all the time.
    for seed in range(8):
        answer = client.chat(messages="ü", params=params(
            max_tokens=40, temperature=2.0, seed=seed, logprobs=1))
        assert answer.text == "".join(answer.deltas)
        answer.text.encode()  # a str that protobuf let through is UTF-8


def test_stop_string_ends_the_text_before_it(client):
    free = client.chat(messages="tell", params=params(max_tokens=40,
                                                      ignore_eos=True))
    assert len(free.text) > 4
    stop = free.text[3:5]
    stopped = client.chat(messages="tell", params=params(
        max_tokens=40, ignore_eos=True, stop=[stop]))
    assert stopped.text == free.text[:free.text.index(stop)]
    assert stopped.final.finish_reason == pb.FINISH_REASON_STOP
    assert stopped.final.stop == stop


def test_generate_from_text_and_tokens(client):
    ids = client.inference.Tokenize(pb.TokenizeRequest(text="once")).token_ids
    by_text = harness.Answer(client.inference.Generate(
        pb.GenerateRequest(text="once", params=params(logprobs=1))))
    by_ids = harness.Answer(client.inference.Generate(pb.GenerateRequest(
        token_ids=pb.TokenIds(ids=ids), params=params(logprobs=1))))
    # Text gets the model's BOS where the model adds one.
    assert by_ids.final.prompt_tokens == len(ids)
    assert by_text.final.prompt_tokens - len(ids) in (0, 1)
    if by_text.final.prompt_tokens == len(ids):
        assert by_text.bits == by_ids.bits
    assert by_ids.final.finish_reason in (pb.FINISH_REASON_MAX_TOKENS,
                                          pb.FINISH_REASON_END)


def test_tokenize_and_detokenize(client):
    for text in ["hello world", "  two  spaces\n\n", "naïve ☃ 𝄞", "<|im_end|>"]:
        tokens = client.inference.Tokenize(pb.TokenizeRequest(text=text))
        assert b"".join(tokens.tokens) == text.encode()
        back = client.inference.Detokenize(
            pb.DetokenizeRequest(token_ids=tokens.token_ids))
        assert back.text == text and back.bytes == text.encode()
    special = client.inference.Tokenize(
        pb.TokenizeRequest(text="<|im_end|>", parse_special=True))
    assert len(special.token_ids) == 1
    broken = client.inference.Detokenize(pb.DetokenizeRequest(
        token_ids=client.inference.Tokenize(
            pb.TokenizeRequest(text="☃")).token_ids[:1]))
    assert "\ufffd" in broken.text or broken.text == "☃"


def test_score_is_what_generation_said(client):
    ids = list(client.inference.Tokenize(
        pb.TokenizeRequest(text="some words to go on from")).token_ids)
    answer = harness.Answer(client.inference.Generate(pb.GenerateRequest(
        token_ids=pb.TokenIds(ids=ids),
        params=params(max_tokens=8, ignore_eos=True, logprobs=1))))
    whole = ids + [t.token_id for t in answer.tokens]
    score = client.inference.Score(pb.ScoreRequest(
        token_ids=pb.TokenIds(ids=whole), first=len(ids), top_logprobs=2))
    assert score.prompt_tokens == len(whole)
    assert [t.token_id for t in score.tokens] == whole[len(ids):]
    for scored, sampled in zip(score.tokens, answer.tokens):
        assert math.isclose(scored.logprob, sampled.logprob, abs_tol=1e-5)
        assert len(scored.top) == 2
    total = sum(t.logprob for t in score.tokens)
    assert math.isclose(score.sum_logprob, total, abs_tol=1e-3)
    assert math.isclose(score.perplexity,
                        math.exp(-total / len(score.tokens)), rel_tol=1e-3)


def test_model_info(client):
    info = client.inference.GetModelInfo(pb.GetModelInfoRequest())
    assert info.architecture == "llama"
    assert info.context_length == 4096
    assert info.codec.startswith("xquant-gqa")
    assert len(info.model_fp) == len(info.cache_fp) == 64
    assert info.kv_fp16_bytes_per_token == (
        4 * info.num_layers * info.n_kv_heads * info.head_dim)
    assert 0 < info.page_bytes_per_token < info.kv_fp16_bytes_per_token
    assert info.server_version


# Sessions.


def test_list_pages_through_all_sessions(client):
    wanted = {f"list-{i}" for i in range(7)}
    for name in sorted(wanted):
        create(client, id=name)
        time.sleep(0.005)  # the order is by time, to the millisecond
    seen, token = [], ""
    while True:
        page = client.sessions.ListSessions(
            spb.ListSessionsRequest(page_size=3, page_token=token))
        assert len(page.sessions) <= 3
        seen += [s.id for s in page.sessions]
        token = page.next_page_token
        if not token:
            break
    assert len(seen) == len(set(seen)) and wanted <= set(seen)
    assert [s for s in seen if s in wanted] == sorted(wanted, reverse=True)
    with fails_with(Code.INVALID_ARGUMENT):
        client.sessions.ListSessions(
            spb.ListSessionsRequest(page_token="made up"))
    with fails_with(Code.INVALID_ARGUMENT, "1000"):
        client.sessions.ListSessions(spb.ListSessionsRequest(page_size=1001))


# Errors.


def test_unknown_sessions_are_not_found(client):
    s = client.sessions
    for call in [
            lambda: client.chat("nobody", "hi"),
            lambda: s.GetSession(spb.GetSessionRequest(id="nobody")),
            lambda: s.DeleteSession(spb.DeleteSessionRequest(id="nobody")),
            lambda: s.ForkSession(spb.ForkSessionRequest(id="nobody")),
            lambda: s.MigrateSession(spb.MigrateSessionRequest(id="nobody")),
            lambda: s.ExportSession(spb.ExportSessionRequest(id="nobody")),
            lambda: s.UpdateSession(spb.UpdateSessionRequest(id="nobody")),
            lambda: s.PinSession(spb.PinSessionRequest(id="nobody")),
            lambda: s.UnpinSession(spb.UnpinSessionRequest(id="nobody")),
            lambda: s.FlushSession(spb.FlushSessionRequest(id="nobody"))]:
        with fails_with(Code.NOT_FOUND, "nobody"):
            call()


def test_a_session_that_exists(client):
    create(client, id="twice")
    with fails_with(Code.ALREADY_EXISTS, "twice"):
        create(client, id="twice")
    create(client, id="thrice")
    with fails_with(Code.ALREADY_EXISTS, "twice"):
        client.sessions.ForkSession(
            spb.ForkSessionRequest(id="thrice", new_id="twice"))


def test_context_too_long_says_both_numbers(client):
    messages = [user("word " * 6000)]
    count = client.count_tokens(messages)
    assert count > 4096
    for call in [
            lambda: client.chat(messages=messages),
            lambda: harness.Answer(client.inference.Generate(
                pb.GenerateRequest(text=messages[0].content)))]:
        # One place is for the answer's first token.
        with fails_with(Code.INVALID_ARGUMENT, "4095"):
            call()
    with fails_with(Code.INVALID_ARGUMENT, str(count), "4095"):
        client.chat(messages=messages)
    with fails_with(Code.INVALID_ARGUMENT, "4096"):
        client.inference.Score(pb.ScoreRequest(text=messages[0].content))
    create(client, id="long")
    with fails_with(Code.INVALID_ARGUMENT, "4095"):
        client.chat("long", messages)
    # It left the session as it was.
    assert client.sessions.GetSession(
        spb.GetSessionRequest(id="long")).turn == 0


@pytest.mark.parametrize("bad", [
    dict(params=params(max_tokens=0)),
    dict(params=pb.GenerationParams(sampling=pb.SamplingParams(top_p=1.5))),
    dict(params=pb.GenerationParams(sampling=pb.SamplingParams(top_p=0))),
    dict(params=pb.GenerationParams(sampling=pb.SamplingParams(min_p=-1))),
    dict(params=pb.GenerationParams(
        sampling=pb.SamplingParams(temperature=-1))),
    dict(params=pb.GenerationParams(
        sampling=pb.SamplingParams(temperature=float("nan")))),
    dict(params=pb.GenerationParams(
        sampling=pb.SamplingParams(repetition_penalty=0))),
    dict(params=pb.GenerationParams(stop=[""])),
    dict(params=pb.GenerationParams(stop=["x" * 257])),
    dict(params=pb.GenerationParams(stop=["x"] * 17)),
    dict(params=pb.GenerationParams(logprobs=22)),
    dict(messages=[]),
    dict(messages=[common_pb2.Message(content="no role")]),
], ids=str)
def test_bad_requests_are_invalid(client, bad):
    with fails_with(Code.INVALID_ARGUMENT):
        client.chat(**{"messages": "hi", **bad})


def test_bad_names_and_tokens_are_invalid(client):
    for name in ["a/b", "a b", "é", "x" * 129, "a\n"]:
        with fails_with(Code.INVALID_ARGUMENT):
            create(client, id=name)
    with fails_with(Code.INVALID_ARGUMENT):
        create(client, codec="no-such-codec:bits=4")
    with fails_with(Code.INVALID_ARGUMENT):
        create(client, title="x" * 257)
    with fails_with(Code.INVALID_ARGUMENT):
        create(client, ttl=duration_pb2.Duration(seconds=-5))
    with fails_with(Code.INVALID_ARGUMENT):
        client.inference.Detokenize(
            pb.DetokenizeRequest(token_ids=[1 << 30]))
    with fails_with(Code.INVALID_ARGUMENT):
        client.inference.Score(pb.ScoreRequest(
            token_ids=pb.TokenIds(ids=[1 << 30, 5])))
    with fails_with(Code.INVALID_ARGUMENT):
        harness.Answer(client.inference.Generate(pb.GenerateRequest()))
    with fails_with(Code.INVALID_ARGUMENT):
        client.inference.Tokenize(pb.TokenizeRequest())


def test_wrong_expected_turn_is_aborted_and_applies_nothing(client):
    create(client, id="turns")
    client.chat("turns", "one", expected_turn=0)
    # A retry of a turn that was applied.
    with fails_with(Code.ABORTED, "1"):
        client.chat("turns", "one", expected_turn=0)
    with fails_with(Code.ABORTED):
        client.chat("turns", "later", expected_turn=5)
    session = client.sessions.GetSession(spb.GetSessionRequest(id="turns"))
    assert (session.turn, session.num_messages) in ((1, 2), (1, 3))


def test_two_turns_at_once_are_aborted(slow_server):
    client = slow_server.client()
    create(client, id="busy")
    stream = long_chat(client, "busy")
    with fails_with(Code.ABORTED):
        client.chat("busy", "me too")
    with fails_with(Code.ABORTED):
        client.sessions.FlushSession(spb.FlushSessionRequest(id="busy"))
    stream.cancel()


def test_cancelling_rolls_the_turn_back(slow_server):
    client = slow_server.client()
    create(client, id="cancel")
    kept = client.chat("cancel", "first")
    stream = long_chat(client, "cancel")
    stream.cancel()
    with fails_with(Code.CANCELLED):
        list(stream)
    harness.wait_until(lambda: slow_server.metrics().sum(
        "xcache_requests_running") == 0, what="the cancelled turn to end")
    session = client.sessions.GetSession(
        spb.GetSessionRequest(id="cancel", with_messages=True))
    assert session.turn == 1
    assert session.messages[-1].content == kept.text
    assert client.chat("cancel", "second", expected_turn=1).final.turn == 2
    generate = client.inference.Generate(
        pb.GenerateRequest(text="go on", params=long_params()))
    next(generate)
    generate.cancel()
    score = client.inference.Score.future(
        pb.ScoreRequest(text="many words " * 1200))
    time.sleep(0.05)
    score.cancel()
    harness.wait_until(
        lambda: all(slow_server.metrics().requests()[(m, "CANCELLED")]
                    for m in ("Chat", "Generate", "Score")),
        what="cancelled calls to be counted")


def test_deadlines_end_the_turn(slow_server):
    client = slow_server.client()
    create(client, id="deadline")
    started = time.monotonic()
    with fails_with(Code.DEADLINE_EXCEEDED):
        client.chat("deadline", "go on", params=long_params(), timeout=0.5)
    assert time.monotonic() - started < 15
    with fails_with(Code.DEADLINE_EXCEEDED):
        harness.Answer(client.inference.Generate(
            pb.GenerateRequest(text="go on", params=long_params()),
            timeout=0.5))
    with fails_with(Code.DEADLINE_EXCEEDED):
        client.inference.Score(pb.ScoreRequest(text="many words " * 1400),
                               timeout=0.2)
    harness.wait_until(lambda: slow_server.metrics().sum(
        "xcache_requests_running") == 0, what="the late turns to end")
    assert client.sessions.GetSession(
        spb.GetSessionRequest(id="deadline")).turn == 0
    harness.wait_until(
        lambda: all(slow_server.metrics().requests()[
            (m, "DEADLINE_EXCEEDED")] for m in ("Chat", "Generate", "Score")),
        what="late calls to be counted")


def test_full_queue_is_exhausted_with_a_hint(slow_server):
    client = slow_server.client()
    # Far more at once than run and wait together.
    calls = [client.inference.Chat(pb.ChatRequest(
        messages=[user(f"{i} " * 300)], params=long_params()))
        for i in range(100)]
    refused = []

    def drain(call):
        try:
            for _ in call:
                return  # it runs: that is all we want to know
        except grpc.RpcError as error:
            refused.append(error)

    threads = [threading.Thread(target=drain, args=[c]) for c in calls]
    for thread in threads:
        thread.start()
    harness.wait_until(lambda: refused, what="a refusal")
    for call in calls:
        call.cancel()
    for thread in threads:
        thread.join()
    hints = []
    for error in refused:
        if error.code() == Code.RESOURCE_EXHAUSTED:
            hints += [int(v) for k, v in error.trailing_metadata()
                      if k == "retry-after-ms"]
        else:
            assert error.code() == Code.CANCELLED, error
    assert hints and all(0 < hint < 600_000 for hint in hints)
    # And once there is room it serves again.
    harness.wait_until(lambda: slow_server.metrics().sum(
        "xcache_requests_running") == 0, 60, "the cancelled turns to end")
    client.chat(messages="hi", params=params(max_tokens=2))


# Tenants, TLS.


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
         "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj",
         "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost",
         "-keyout", folder / "key.pem", "-out", folder / "cert.pem"],
        check=True, capture_output=True)
    return folder


def token_file(folder):
    path = folder / "tokens"
    path.write_text("# token tenant\nalpha-secret alpha\nbeta-secret beta\n"
                    "alpha-second alpha\n")
    path.chmod(0o600)
    return path


def each_method(client):
    """Every method with a request that would succeed, by name."""
    i, s = client.inference, client.sessions
    chat = pb.ChatRequest(messages=[user("hi")], params=params(max_tokens=2))
    generate = pb.GenerateRequest(text="hi", params=params(max_tokens=2))
    return {
        "Chat": lambda: list(i.Chat(chat)),
        "Generate": lambda: list(i.Generate(generate)),
        "Tokenize": lambda: i.Tokenize(pb.TokenizeRequest(text="hi")),
        "Detokenize": lambda: i.Detokenize(
            pb.DetokenizeRequest(token_ids=[5])),
        "Score": lambda: i.Score(pb.ScoreRequest(text="hi there")),
        "GetModelInfo": lambda: i.GetModelInfo(pb.GetModelInfoRequest()),
        "CreateSession": lambda: s.CreateSession(
            spb.CreateSessionRequest(id="mine")),
        "GetSession": lambda: s.GetSession(spb.GetSessionRequest(id="mine")),
        "ListSessions": lambda: s.ListSessions(spb.ListSessionsRequest()),
        "PinSession": lambda: s.PinSession(spb.PinSessionRequest(id="mine")),
        "UnpinSession": lambda: s.UnpinSession(
            spb.UnpinSessionRequest(id="mine")),
        "FlushSession": lambda: s.FlushSession(
            spb.FlushSessionRequest(id="mine")),
        "ForkSession": lambda: s.ForkSession(
            spb.ForkSessionRequest(id="mine", new_id="fork")),
        "MigrateSession": lambda: s.MigrateSession(
            spb.MigrateSessionRequest(id="mine")),
        "ExportSession": lambda: s.ExportSession(
            spb.ExportSessionRequest(id="mine")),
        "ImportSession": lambda: s.ImportSession(spb.ImportSessionRequest(
            document='{"format":"xcache-session","version":1,"messages":[]}')),
        "UpdateSession": lambda: s.UpdateSession(
            spb.UpdateSessionRequest(id="mine", title="t")),
        "DeleteSession": lambda: s.DeleteSession(
            spb.DeleteSessionRequest(id="mine")),
    }


def test_tls_and_tokens(tiny_model, certificate, tmp_path):
    with harness.Server(
            tiny_model, tmp_path, "--tls-cert", certificate / "cert.pem",
            "--tls-key", certificate / "key.pem", "--token-file",
            token_file(tmp_path),
            tls_ca=(certificate / "cert.pem").read_bytes()) as server:
        alpha = server.client("alpha-secret")
        for call in each_method(alpha).values():
            call()
        for stranger in [server.client(), server.client("wrong"),
                         server.client("alpha-secret ")]:
            for call in each_method(stranger).values():
                with fails_with(Code.UNAUTHENTICATED):
                    call()
        # A client without TLS gets nothing at all.
        with grpc.insecure_channel(server.address) as plain:
            with fails_with(Code.UNAVAILABLE):
                harness.Client(plain).inference.GetModelInfo(
                    pb.GetModelInfoRequest(), timeout=10)
        # Probes need no token.
        health = health_pb2_grpc.HealthStub(server.channel())
        assert (health.Check(health_pb2.HealthCheckRequest()).status ==
                health_pb2.HealthCheckResponse.SERVING)
        methods = sum(harness.METHODS.values(), [])
        note(server, *((m, "UNAUTHENTICATED") for m in methods),
             *((m, "OK") for m in methods))


def test_tenants_do_not_see_each_other(tiny_model, tmp_path):
    with harness.Server(tiny_model, tmp_path, "--token-file",
                        token_file(tmp_path)) as server:
        alpha = server.client("alpha-secret")
        beta = server.client("beta-secret")
        create(alpha, id="private", system_prompt="alpha's " * 40)
        alpha.chat("private", "hi")
        s = beta.sessions
        for call in [
                lambda: beta.chat("private", "hi"),
                lambda: s.GetSession(spb.GetSessionRequest(id="private")),
                lambda: s.DeleteSession(
                    spb.DeleteSessionRequest(id="private")),
                lambda: s.ForkSession(spb.ForkSessionRequest(id="private")),
                lambda: s.MigrateSession(
                    spb.MigrateSessionRequest(id="private")),
                lambda: s.ExportSession(
                    spb.ExportSessionRequest(id="private")),
                lambda: s.UpdateSession(
                    spb.UpdateSessionRequest(id="private")),
                lambda: s.PinSession(spb.PinSessionRequest(id="private")),
                lambda: s.UnpinSession(spb.UnpinSessionRequest(id="private")),
                lambda: s.FlushSession(spb.FlushSessionRequest(id="private"))]:
            with fails_with(Code.NOT_FOUND):
                call()
        assert not s.ListSessions(spb.ListSessionsRequest()).sessions
        # The same id is free for another tenant, and stays apart.
        create(beta, id="private")
        assert len(s.ListSessions(spb.ListSessionsRequest()).sessions) == 1
        assert alpha.sessions.GetSession(
            spb.GetSessionRequest(id="private")).turn == 1
        # Another token of the same tenant is the same tenant.
        assert server.client("alpha-second").sessions.GetSession(
            spb.GetSessionRequest(id="private")).turn == 1
        # SIGHUP reads the file again.
        (tmp_path / "tokens").write_text("gamma-secret gamma\n")
        server.process.send_signal(signal.SIGHUP)
        gamma = server.client("gamma-secret")

        def known():
            try:
                gamma.inference.GetModelInfo(pb.GetModelInfoRequest())
                return True
            except grpc.RpcError as error:
                assert error.code() == Code.UNAUTHENTICATED
                return False

        harness.wait_until(known, what="the new token")
        with fails_with(Code.UNAUTHENTICATED):
            alpha.inference.GetModelInfo(pb.GetModelInfoRequest())
        note(server, ("GetSession", "NOT_FOUND"), ("Chat", "NOT_FOUND"))


# Health, draining, a session of another model.


def test_health(server):
    health = health_pb2_grpc.HealthStub(server.channel())
    serving = health_pb2.HealthCheckResponse.SERVING
    for service in ["", "xcache.v1.Inference", "xcache.v1.Sessions"]:
        request = health_pb2.HealthCheckRequest(service=service)
        assert health.Check(request).status == serving
        watch = health.Watch(request)
        assert next(watch).status == serving
        watch.cancel()
    unknown = health_pb2.HealthCheckRequest(service="no.such.Service")
    with fails_with(Code.NOT_FOUND):
        health.Check(unknown)


def test_sigterm_drains(slow_model, tmp_path):
    with harness.Server(slow_model, tmp_path, "--drain-seconds", 6) as server:
        client = server.client()
        health = health_pb2_grpc.HealthStub(server.channel())
        watch = health.Watch(health_pb2.HealthCheckRequest())
        assert (next(watch).status ==
                health_pb2.HealthCheckResponse.SERVING)
        create(client, id="last")
        short = client.inference.Chat(pb.ChatRequest(
            session_id="last", messages=[user("hi")],
            params=params(max_tokens=20, ignore_eos=True)))
        next(short)
        endless = long_chat(client)
        server.process.send_signal(signal.SIGTERM)
        assert (next(watch).status ==
                health_pb2.HealthCheckResponse.NOT_SERVING)
        with fails_with(Code.UNAVAILABLE) as refused:
            client.inference.GetModelInfo(pb.GetModelInfoRequest())
        assert int(refused.trailer("retry-after-ms") or 1) > 0
        # What runs goes on to its end, for as long as there is time.
        assert harness.Answer(short).final.turn == 1
        note(server, ("GetModelInfo", "UNAVAILABLE"))
        with fails_with(Code.UNAVAILABLE):
            list(endless)
        assert server.process.wait(timeout=30) == 0
    with harness.Server(slow_model, tmp_path) as server:
        assert server.client().sessions.GetSession(
            spb.GetSessionRequest(id="last")).turn == 1


def test_a_session_of_another_model(tiny_model, other_model, tmp_path):
    with harness.Server(tiny_model, tmp_path) as server:
        client = server.client()
        create(client, id="old")
        client.chat("old", "hi")
        server.stop()
    with harness.Server(other_model, tmp_path) as server:
        client = server.client()
        with fails_with(Code.FAILED_PRECONDITION):
            client.chat("old", "hi again")
        create(client, id="new")
        client.chat("new", "hi")
        note(server, ("Chat", "FAILED_PRECONDITION"))


def test_zz_the_metrics_confirm_it(server, slow_server):
    """Last by its name: every method, and every code where it can occur."""
    note(server)
    note(slow_server)
    every = sum(harness.METHODS.values(), [])
    wanted = {(m, "OK") for m in every}
    wanted |= {(m, "UNAUTHENTICATED") for m in every}
    wanted |= {(m, "NOT_FOUND") for m in [
        "Chat", "GetSession", "DeleteSession", "ForkSession", "MigrateSession",
        "ExportSession", "UpdateSession", "PinSession", "UnpinSession",
        "FlushSession"]}
    wanted |= {(m, "INVALID_ARGUMENT") for m in [
        "Chat", "Generate", "Score", "Tokenize", "Detokenize", "CreateSession",
        "ListSessions"]}
    wanted |= {("CreateSession", "ALREADY_EXISTS"),
               ("ForkSession", "ALREADY_EXISTS"),
               ("Chat", "ABORTED"), ("FlushSession", "ABORTED"),
               ("Chat", "RESOURCE_EXHAUSTED"),
               ("Chat", "CANCELLED"), ("Generate", "CANCELLED"),
               ("Score", "CANCELLED"),
               ("Chat", "DEADLINE_EXCEEDED"),
               ("Generate", "DEADLINE_EXCEEDED"),
               ("Score", "DEADLINE_EXCEEDED"),
               ("Chat", "FAILED_PRECONDITION"),
               ("GetModelInfo", "UNAVAILABLE")}
    missing = {pair for pair in wanted | EXPECTED if COUNTED[pair] == 0}
    assert not missing, f"not in the servers' metrics: {sorted(missing)}"
    internal = {pair: n for pair, n in COUNTED.items()
                if pair[1] in ("INTERNAL", "UNKNOWN", "DATA_LOSS") and n}
    assert not internal

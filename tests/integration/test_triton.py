"""Triton's own client, unchanged, against the real server: infer, streams that
are decoupled, cancel, sequences that are sessions, and bad input."""

import json
import queue

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import InferenceServerException

from xcache.v1 import inference_pb2
from xcache.v1 import sessions_pb2 as spb

import harness
from harness import fails_with, params, wait_until

Code = grpc.StatusCode
MODEL = "demo"


@pytest.fixture(scope="module")
def server(tiny_model, tmp_path_factory):
    with harness.Server(tiny_model, tmp_path_factory.mktemp("triton"),
                        "--model-name", MODEL) as running:
        yield running


@pytest.fixture
def client(server):
    with triton.InferenceServerClient(server.address) as one:
        yield one


def tensor(name, datatype, value):
    out = triton.InferInput(name, [1], datatype)
    kind = np.object_ if datatype == "BYTES" else np.bool_
    out.set_data_from_numpy(np.array([value], dtype=kind))
    return out


def inputs(text, sampling=None, **bools):
    out = [tensor("text_input", "BYTES", text)]
    if sampling is not None:
        out.append(tensor("sampling_parameters", "BYTES",
                          json.dumps(sampling)))
    return out + [tensor(name, "BOOL", value)
                  for name, value in bools.items()]


def text_of(result):
    return result.as_numpy("text_output")[0].decode()


def reason_of(result):
    return result.as_numpy("finish_reason")[0].decode()


def is_final(result):
    parameters = result.get_response().parameters
    return parameters["triton_final_response"].bool_param


class Stream:
    """What comes of a stream, as it comes."""

    def __init__(self, client):
        self.client, self.events = client, queue.Queue()
        client.start_stream(
            lambda result, error: self.events.put((result, error)))

    def ask(self, *args, **more):
        self.client.async_stream_infer(MODEL, *args, **more)

    def answer(self):
        """Its results, to the final one."""
        out = []
        while not out or not is_final(out[-1]):
            result, error = self.events.get(timeout=60)
            if error is not None:
                raise error
            out.append(result)
        return out


def generated(server, text, num_tokens):
    """What our own API answers, greedily."""
    return harness.Answer(server.client().inference.Generate(
        inference_pb2.GenerateRequest(text=text, params=params(num_tokens)))).text


GREEDY = {"temperature": 0, "max_tokens": 12}


def test_what_there_is(client):
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready(MODEL) and client.is_model_ready(MODEL, "1")
    assert not client.is_model_ready("other")
    assert not client.is_model_ready(MODEL, "2")
    assert client.get_server_metadata().name == "xcache"
    metadata = client.get_model_metadata(MODEL)
    assert [t.name for t in metadata.inputs] == [
        "text_input", "stream", "sampling_parameters",
        "exclude_input_in_output"]
    assert [t.name for t in metadata.outputs] == [
        "text_output", "finish_reason"]
    config = client.get_model_config(MODEL).config
    assert config.model_transaction_policy.decoupled
    assert [(i.name, i.optional) for i in config.input][:2] == [
        ("text_input", False), ("stream", True)]
    index = client.get_model_repository_index()
    assert [(m.name, m.state) for m in index.models] == [(MODEL, "READY")]
    for call in (client.get_model_metadata, client.get_model_config):
        with pytest.raises(InferenceServerException, match="no model 'other'"):
            call("other")


def test_infer(server, client):
    whole = generated(server, "Once upon", 12)
    result = client.infer(MODEL, inputs("Once upon", GREEDY), request_id="r1")
    response = result.get_response()
    assert response.id == "r1" and response.model_version == "1"
    assert len(response.raw_output_contents) == 2
    assert not response.outputs[0].HasField("contents")
    assert text_of(result) == "Once upon" + whole
    assert reason_of(result) == "length"
    # Numbers as strings; the text of the answer alone.
    as_strings = {name: str(value) for name, value in GREEDY.items()}
    result = client.infer(MODEL, inputs("Once upon", as_strings,
                                        exclude_input_in_output=True))
    assert text_of(result) == whole
    # What is asked for and no more; tensors of a client that sends contents.
    request = pb.ModelInferRequest(model_name=MODEL)
    request.inputs.add(name="text_input", datatype="BYTES", shape=[1, 1],
                       contents=pb.InferTensorContents(
                           bytes_contents=[b"Once upon"]))
    request.outputs.add(name="finish_reason")
    with grpc.insecure_channel(server.address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        response = stub.ModelInfer(request)
    assert [o.name for o in response.outputs] == ["finish_reason"]


def test_streams(server, client):
    whole = generated(server, "Once upon", 12)
    stream = Stream(client)
    # Several at once; each response has its request's id.
    for i in range(3):
        stream.ask(inputs("Once upon", GREEDY, stream=True),
                   request_id=f"r{i}", enable_empty_final_response=True)
    got = {}
    while sum(is_final(r[-1]) for r in got.values()) < 3:
        result, error = stream.events.get(timeout=60)
        assert error is None, error
        got.setdefault(result.get_response().id, []).append(result)
    for name in ("r0", "r1", "r2"):
        assert len(got[name]) > 2
        assert "".join(text_of(r) for r in got[name]) == whole
        assert [reason_of(r) for r in got[name]] == (
            [""] * (len(got[name]) - 1) + ["length"])
        assert [is_final(r) for r in got[name]] == (
            [False] * (len(got[name]) - 1) + [True])
    # More than may be under way at once.
    for i in range(200):
        stream.ask(inputs("Once upon", {"max_tokens": 1}), request_id=str(i))
    ids = {stream.answer()[0].get_response().id for _ in range(200)}
    assert ids == {str(i) for i in range(200)}
    # Whole answers on a stream.
    stream.ask(inputs("Once upon", GREEDY))
    result, = stream.answer()
    assert text_of(result) == "Once upon" + whole
    # What fails is told, and the stream goes on.
    stream.ask(inputs("Once upon", {"temprature": 1}), request_id="bad")
    with pytest.raises(InferenceServerException, match="no 'temprature'"):
        stream.answer()
    stream.ask(inputs("Once upon", GREEDY, stream=True))
    assert "".join(text_of(r) for r in stream.answer()) == whole
    client.stop_stream()


def test_cancel(server, client):
    stream = Stream(client)
    stream.ask(inputs("Once upon", {"max_tokens": 100000, "ignore_eos": True},
                      stream=True))
    stream.events.get(timeout=60)
    running = "xcache_requests_running"
    assert server.metrics().sum(running) == 1
    client.stop_stream(cancel_requests=True)
    wait_until(lambda: server.metrics().sum(running) == 0, 20, "its end")
    handle = client.async_infer(
        MODEL, inputs("x", {"max_tokens": 100000, "ignore_eos": True}),
        lambda result, error: None)
    wait_until(lambda: server.metrics().sum(running) == 1, 20, "its begin")
    handle.cancel()
    wait_until(lambda: server.metrics().sum(running) == 0, 20, "its end")


def test_a_sequence_is_a_session(server, client):
    ours = server.client()
    for sequence in ("talk", 7):
        name = str(sequence)
        client.infer(MODEL, inputs("hi", GREEDY), sequence_id=sequence,
                     sequence_start=True)
        # What starts was not there before.
        with pytest.raises(InferenceServerException, match="turn"):
            client.infer(MODEL, inputs("hi", GREEDY), sequence_id=sequence,
                         sequence_start=True)
        client.infer(MODEL, inputs("and then?", GREEDY), sequence_id=sequence)
        session = ours.sessions.GetSession(
            spb.GetSessionRequest(id=name, with_messages=True))
        assert session.turn == 2
        assert [m.content for m in session.messages][-4::2] == [
            "hi", "and then?"]
        answer = client.infer(MODEL, inputs("bye", GREEDY),
                              sequence_id=sequence, sequence_end=True)
        assert reason_of(answer) == "length"
        with fails_with(Code.NOT_FOUND):
            ours.sessions.GetSession(spb.GetSessionRequest(id=name))


def test_statistics(server, client):
    def stats():
        return client.get_inference_statistics(MODEL).model_stats[0]

    before = stats()
    client.infer(MODEL, inputs("Once upon", GREEDY))
    with pytest.raises(InferenceServerException):
        client.infer(MODEL, inputs("Once upon", {"max_tokens": 0}))
    after = stats()
    assert after.inference_count == before.inference_count + 1
    assert after.inference_stats.success.ns > before.inference_stats.success.ns
    assert after.inference_stats.fail.count == (
        before.inference_stats.fail.count + 1)
    assert server.metrics().sum("xcache_requests_total", method="ModelInfer",
                                code="INVALID_ARGUMENT") >= 1


def bad_requests():
    def request(change):
        out = pb.ModelInferRequest(model_name=MODEL)
        out.inputs.add(name="text_input", datatype="BYTES", shape=[1])
        out.raw_input_contents.append(b"\x02\0\0\0hi")
        change(out)
        return out

    def raw(value):
        def change(out):
            out.raw_input_contents[0] = value
        return change

    def field(path, value):
        return lambda out: setattr(out.inputs[0], path, value)

    def parameter(name, **value):
        return lambda out: out.parameters[name].MergeFrom(
            pb.InferParameter(**value))

    def add(name, datatype, value):
        def change(out):
            out.inputs.add(name=name, datatype=datatype, shape=[1])
            out.raw_input_contents.append(value)
        return change

    def sampling(text):
        return add("sampling_parameters", "BYTES",
                   len(text).to_bytes(4, "little") + text.encode())

    yield request(raw(b"\x03\0\0\0hi")), "text_input: expected 4 bytes"
    yield request(raw(b"")), "text_input: expected 4 bytes"
    yield request(raw(b"\x02\0\0\0\xff\xfe")), "UTF-8"
    yield request(field("datatype", "INT32")), "expected datatype BYTES"
    yield request(lambda out: out.inputs[0].shape.append(2)), "shape"
    yield request(field("name", "txt")), "no 'txt'; there are text_input"
    yield request(lambda out: out.raw_input_contents.append(b"")), "for each"
    yield request(lambda out: out.outputs.add(name="x")), "outputs: no 'x'"
    yield request(add("stream", "BOOL", b"\1")), "ModelStreamInfer"
    yield request(add("stream", "BOOL", b"")), "stream: expected 1 element"
    yield request(sampling("[1]")), "expected a JSON object"
    yield request(sampling("{" * 500)), "expected a JSON object"
    yield request(sampling('{"a": ' * 500)), "expected a JSON object"
    yield request(sampling('{"top_p": "x"}')), "top_p: expected a number"
    yield request(sampling('{"top_p": 2}')), "top_p"
    yield request(sampling('{"seed": 1.5}')), "seed: expected an integer"
    yield request(sampling('{"stop": 1}')), "stop: expected a string"
    yield request(parameter("sequence_id", bool_param=True)), "sequence_id"
    yield request(parameter("sequence_id", string_param="a b")), "id"
    yield request(parameter("sequence_end", bool_param=True)), "sequence_id"
    yield request(lambda out: out.inputs.pop()), "for each of 0"


@pytest.mark.parametrize("request_, why", bad_requests(),
                         ids=lambda v: v if isinstance(v, str) else "")
def test_bad_input(server, request_, why):
    with grpc.insecure_channel(server.address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        with fails_with(Code.INVALID_ARGUMENT) as failed:
            stub.ModelInfer(request_)
    assert why in failed.error.details(), failed.error.details()

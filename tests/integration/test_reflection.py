"""A client with no generated code at all: what it knows it asks the server for,
as grpcurl and gateways do."""

import grpc
import pytest
from google.protobuf import descriptor_pool
from google.protobuf import json_format
from google.protobuf import message_factory
from grpc_reflection.v1alpha import proto_reflection_descriptor_database

import harness


@pytest.fixture(scope="module")
def reflected(server):
    channel = server.channel()
    database = (proto_reflection_descriptor_database
                .ProtoReflectionDescriptorDatabase(channel))
    return channel, database, descriptor_pool.DescriptorPool(database)


def call(reflected, service, method, request):
    """Calls it with a request of plain values; returns plain values."""
    channel, _, pool = reflected
    found = pool.FindServiceByName(service).methods_by_name[method]
    request_class = message_factory.GetMessageClass(found.input_type)
    response_class = message_factory.GetMessageClass(found.output_type)
    make = channel.unary_stream if found.server_streaming else channel.unary_unary
    stub = make(f"/{service}/{method}",
                request_serializer=request_class.SerializeToString,
                response_deserializer=response_class.FromString)
    message = json_format.ParseDict(request, request_class())

    def plain(response):
        return json_format.MessageToDict(response,
                                         preserving_proto_field_name=True)

    answer = stub(message, timeout=60)
    if found.server_streaming:
        return [plain(response) for response in answer]
    return plain(answer)


def test_services_and_methods_are_listed(reflected):
    _, database, pool = reflected
    services = set(database.get_services())
    assert {"xcache.v1.Inference", "xcache.v1.Sessions",
            "inference.GRPCInferenceService",
            "grpc.health.v1.Health"} <= services
    for service, methods in harness.METHODS.items():
        found = pool.FindServiceByName(f"xcache.v1.{service}")
        assert {m.name for m in found.methods} == set(methods)


def test_every_method_can_be_called(reflected):
    inference, sessions = "xcache.v1.Inference", "xcache.v1.Sessions"
    short = {"max_tokens": 4, "sampling": {"temperature": 0}}
    info = call(reflected, inference, "GetModelInfo", {})
    assert info["architecture"] == "llama"
    made = call(reflected, sessions, "CreateSession",
                {"id": "reflected", "ttl": "3600s", "title": "by reflection"})
    assert made["title"] == "by reflection"
    chat = call(reflected, inference, "Chat", {
        "session_id": "reflected", "params": short,
        "messages": [{"role": "ROLE_USER", "content": "hello"}]})
    assert chat[-1]["final"]["durability"] == "DURABILITY_LOCAL"
    assert int(chat[-1]["final"]["turn"]) == 1
    generated = call(reflected, inference, "Generate",
                     {"text": "hello", "params": short})
    assert "final" in generated[-1]
    tokens = call(reflected, inference, "Tokenize", {"text": "hello"})
    back = call(reflected, inference, "Detokenize",
                {"token_ids": tokens["token_ids"]})
    assert back["text"] == "hello"
    score = call(reflected, inference, "Score", {"text": "hello there"})
    assert score["perplexity"] > 1
    got = call(reflected, sessions, "GetSession",
               {"id": "reflected", "with_messages": True})
    assert got["messages"][-1]["role"] == "ROLE_ASSISTANT"
    assert call(reflected, sessions, "PinSession",
                {"id": "reflected"})["pinned"] is True
    assert "pinned" not in call(reflected, sessions, "UnpinSession",
                                {"id": "reflected"})
    assert call(reflected, sessions, "UpdateSession",
                {"id": "reflected", "title": "new"})["title"] == "new"
    call(reflected, sessions, "FlushSession", {"id": "reflected"})
    assert "retokenized" not in call(reflected, sessions, "MigrateSession",
                                     {"id": "reflected"})
    document = call(reflected, sessions, "ExportSession",
                    {"id": "reflected"})["document"]
    assert int(call(reflected, sessions, "ImportSession",
                    {"id": "imported", "document": document})["turn"]) == 1
    call(reflected, sessions, "ForkSession",
         {"id": "reflected", "new_id": "copy"})
    ids = {s["id"] for s in call(reflected, sessions, "ListSessions",
                                 {})["sessions"]}
    assert {"reflected", "copy"} <= ids
    call(reflected, sessions, "DeleteSession", {"id": "copy"})


def test_an_unknown_method_is_unimplemented(reflected):
    channel, _, _ = reflected
    stub = channel.unary_unary("/xcache.v1.Inference/NoSuchMethod")
    with harness.fails_with(grpc.StatusCode.UNIMPLEMENTED):
        stub(b"", timeout=20)


def test_bytes_that_are_no_request(reflected):
    channel, _, _ = reflected
    stub = channel.unary_unary("/xcache.v1.Inference/Tokenize")
    # gRPC refuses it before it reaches us; its C++ library says UNIMPLEMENTED.
    with harness.fails_with(grpc.StatusCode.UNIMPLEMENTED):
        stub(b"\xff\xff\xff\xff", timeout=20)
    # And it still serves.
    assert call(reflected, "xcache.v1.Inference", "Tokenize", {"text": "x"})

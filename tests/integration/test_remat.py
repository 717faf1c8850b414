"""The remat policy of a session, over the wire. On the CPU it changes nothing
but what is kept of it: the answers are the same."""

import grpc
import pytest
from xcache.v1 import sessions_pb2 as spb

import harness
from harness import fails_with

Code = grpc.StatusCode


@pytest.fixture(scope="module")
def server(tiny_model, tmp_path_factory):
    with harness.Server(tiny_model,
                        tmp_path_factory.mktemp("remat")) as running:
        yield running


def create(client, **more):
    return client.sessions.CreateSession(spb.CreateSessionRequest(**more))


def test_the_remat_policy_of_a_session(server):
    client = server.client()

    def get(name):
        return client.sessions.GetSession(spb.GetSessionRequest(id=name)).remat

    for name in ["resume", "step"]:
        assert create(client, id=f"remat-{name}", remat=name).remat == name
        assert get(f"remat-{name}") == name
    answers = [client.chat(f"remat-{name}", "one " * 80).text
               for name in ["resume", "step"]]
    assert len(set(answers)) == 1
    assert create(client, id="remat-default").remat == "resume"
    fork = client.sessions.ForkSession(
        spb.ForkSessionRequest(id="remat-step", new_id="remat-fork"))
    assert fork.remat == "step"
    for name in ["sometimes", "auto"]:
        with fails_with(Code.INVALID_ARGUMENT, "remat is resume or step"):
            create(client, remat=name)
    counted = server.metrics()
    for policy, sessions in [("resume", 2), ("step", 2)]:
        assert counted.sum("xcache_remat_sessions_total",
                           policy=policy) == sessions

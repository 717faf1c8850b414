"""The model's file is disturbed under a running server: answers and what is
stored stay those of the model that was loaded, and the server says what it saw.
"""

import os
import shutil

import pytest
from xcache.v1 import sessions_pb2 as spb

import harness
from harness import params

GREEDY = params(max_tokens=70, ignore_eos=True, logprobs=1)


def chat(client, session, text):
    return client.chat(session, text, params=GREEDY)


@pytest.fixture
def model(tiny_model, tmp_path):
    return shutil.copy(tiny_model, tmp_path / "model.gguf")


def changed(server):
    return server.metrics().sum("xcache_model_file_changed")


def truncate(path, other):
    os.truncate(path, 0)


def overwrite(path, other):
    with open(path, "r+b") as f:
        f.write(other.read_bytes())
    assert os.path.getsize(path) == os.path.getsize(other)


def replace(path, other):
    shutil.copy(other, path + ".new")
    os.rename(path + ".new", path)


def remove(path, other):
    os.remove(path)


@pytest.fixture(scope="module")
def same_size_model(models):
    from conftest import make_model
    return make_model(models / "same_size.gguf", "context=4096", "seed=2")


@pytest.mark.parametrize("disturb", [truncate, overwrite, replace, remove])
def test_a_disturbed_file(disturb, model, tiny_model, same_size_model,
                          tmp_path):
    model = str(model)
    (tmp_path / "twin").mkdir()
    with harness.Server(tiny_model, tmp_path / "twin") as twin:
        client = twin.client()
        client.sessions.CreateSession(spb.CreateSessionRequest(id="a"))
        expected = [chat(client, "a", text).bits for text in "123"]

    with harness.Server(model, tmp_path) as server:
        client = server.client()
        client.sessions.CreateSession(spb.CreateSessionRequest(id="a"))
        assert chat(client, "a", "1").bits == expected[0]
        assert changed(server) == 0
        disturb(model, same_size_model)
        assert chat(client, "a", "2").bits == expected[1]
        # A codec that nobody has opened yet reads the weights.
        client.sessions.CreateSession(spb.CreateSessionRequest(
            id="b", codec="xquant-cl-gqa:bits=3"))
        chat(client, "b", "1")
        harness.wait_until(lambda: changed(server) == 1, what="the metric")
        assert server.log().count("the model's file has changed") == 1
        server.stop()

    # Pages made meanwhile are the right model's.
    shutil.copy(tiny_model, model)
    with harness.Server(model, tmp_path) as server:
        answer = chat(server.client(), "a", "3")
        assert answer.bits == expected[2]
        assert answer.reused > 0
        assert changed(server) == 0

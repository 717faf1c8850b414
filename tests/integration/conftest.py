"""Models, and a server for tests that need nothing special of it."""

import pytest

import harness
from model_fixtures import (  # noqa: F401
    make_model, models, pytest_collection_modifyitems, real_model, seed,
    slow_model, tiny_model)


@pytest.fixture(scope="session")
def other_model(models):
    return make_model(models / "other.gguf", "seed=2")


@pytest.fixture(scope="session")
def medium_model(models):
    """Pages are much cheaper than their tokens, and both are quick."""
    return make_model(models / "medium.gguf", "layers=4", "d_model=256",
                      "n_heads=4", "n_kv_heads=2", "head_dim=64", "d_ff=512",
                      "context=4096")


@pytest.fixture(scope="module")
def server(tiny_model, tmp_path_factory):
    with harness.Server(tiny_model,
                        tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture
def client(server):
    return server.client()

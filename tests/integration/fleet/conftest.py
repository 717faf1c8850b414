"""A model and a seed; each test makes its own fleet."""

import os
import random

import pytest

import harness
from model_fixtures import make_model, models, tiny_model  # noqa: F401


@pytest.fixture(scope="session")
def seed():
    value = int(os.environ.get("XCACHE_SEED") or random.randrange(1 << 30))
    print(f"XCACHE_SEED={value}")
    return value


@pytest.fixture(scope="session")
def real_model():
    path = os.environ.get("XCACHE_TEST_MODEL")
    if not path:
        pytest.skip("XCACHE_TEST_MODEL is not set")
    return path


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """One S3 server for tests that leave it as it is: its start takes
    seconds."""
    from object_server import ObjectServer
    with ObjectServer(tmp_path_factory.mktemp("objects")) as server:
        yield server

"""A model and a seed; each test makes its own fleet."""

import os

import pytest

import harness
from model_fixtures import (  # noqa: F401
    models, pytest_collection_modifyitems, real_model, seed, tiny_model)


def pytest_xdist_setupnodes():
    """The workers' processes are to know what a campaign asks for, too."""
    os.environ.update(harness.CAMPAIGN)


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """One S3 server for tests that leave it as it is: its start takes
    seconds."""
    from object_server import ObjectServer
    with ObjectServer(tmp_path_factory.mktemp("objects")) as server:
        yield server

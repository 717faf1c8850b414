"""A server with the HTTP API, and how its clients find it."""

import pytest

import harness
from model_fixtures import models, tiny_model  # noqa: F401

MODEL = "demo"


@pytest.fixture(scope="session")
def server(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    tokens = folder / "tokens"
    tokens.write_text("sk-good alice\n")
    tokens.chmod(0o600)
    with harness.Server(tiny_model, folder, "--model-name", MODEL,
                        "--http-listen", "127.0.0.1:0", "--token-file",
                        tokens) as running:
        yield running


@pytest.fixture(scope="session")
def base_url(server):
    return f"http://{server.http_address}/v1"

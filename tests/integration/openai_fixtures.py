"""A server with the HTTP API, and OpenAI's own Python client of it: `from
openai_fixtures import ...` in a test's module, which then has a server of its own."""

import openai
import pytest

import harness

HTTP = ("--http-listen", "127.0.0.1:0")


def client_of(server, token="none", **more):
    return openai.OpenAI(
        base_url=f"http://{server.http_address}/v1", api_key=token,
        http_client=openai.DefaultHttpxClient(trust_env=False, timeout=120),
        **{"max_retries": 0, **more})


@pytest.fixture(scope="module")
def server(tiny_model, tmp_path_factory):
    with harness.Server(tiny_model, tmp_path_factory.mktemp("openai"),
                        *HTTP) as running:
        yield running


@pytest.fixture
def ai(server):
    return client_of(server)


def ask(ai, text="Tell me of the sea.", **more):
    more = {"max_tokens": 12, "temperature": 0, "model": "tiny", **more}
    return ai.chat.completions.create(
        messages=[{"role": "user", "content": text}], **more)

"""A real Prometheus scrapes the server and answers a query."""

import json
import math
import re
import struct
import subprocess
import sys
import time

import grpc
import pytest
from xcache.v1 import sessions_pb2

import harness
from prometheus import get, prometheus, query


@pytest.fixture
def address(server, tmp_path):
    """Of a Prometheus that looks at the server."""
    with prometheus([server.metrics_address], tmp_path) as running:
        yield running


def published_queries():
    """All that METRICS.md tells an operator to ask."""
    page = (harness.SOURCE / "server/metrics/METRICS.md").read_text()
    useful = page[page.index("## Useful queries"):]
    queries = re.findall(r"^- [^`]*`([^`]+)`$", useful, re.M)
    assert len(queries) == useful.count("\n- ") >= 6
    return queries


def test_every_published_query_has_an_answer(client, address):
    # A conversation that comes back from its pages, and a failure, while
    # Prometheus looks: a rate needs two looks.
    session = client.sessions.CreateSession(
        sessions_pb2.CreateSessionRequest(id="queries"))
    client.chat(session.id, "a few words " * 50)
    for _ in range(60):
        client.chat(session.id, "go on", params=harness.params(max_tokens=4))
        client.sessions.FlushSession(
            sessions_pb2.FlushSessionRequest(id=session.id))
        with harness.fails_with(grpc.StatusCode.NOT_FOUND):
            client.sessions.GetSession(
                sessions_pb2.GetSessionRequest(id="nobody"))
        # Not even NaN: something was divided by something.
        answers = {text: query(address, text) for text in published_queries()}
        silent = [text for text, values in answers.items()
                  if not values or not all(map(math.isfinite, values))]
        if not silent:
            break
        time.sleep(0.2)
    assert not silent, silent


def test_the_boards_are_drawn_without_a_grafana(client, address, tmp_path):
    client.chat(messages="hello")
    harness.wait_until(
        lambda: query(address, "sum(xcache_requests_total) > 0"),
        what="the chat to be scraped")
    picture = tmp_path / "boards.png"
    # Below the build, so that the packages are got once.
    words = [sys.executable, harness.SOURCE / "deploy/preview_dashboards.py",
             "--prometheus", address, "--out", picture, "--minutes", "1",
             "--work", harness.BUILD / "integration"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    empty = json.loads(done.stdout)["empty"]
    # There are no recording rules here, and so no figures of theirs.
    assert "XCache: users: Requests that fail" in empty
    assert "XCache: fleet: Servers" not in empty
    assert picture.read_bytes().startswith(b"\x89PNG")
    width, height = struct.unpack(">II", picture.read_bytes()[16:24])
    assert width > 1000 and height > 1000
    # A picture with holes is no success where that is asked.
    strict = subprocess.run([*words, "--strict"], capture_output=True,
                            timeout=300)
    assert strict.returncode == 1
    wrong = subprocess.run([*words, "--boards", "nothing"],
                           capture_output=True, text=True, timeout=60)
    assert wrong.returncode == 2 and "cache, fleet, users" in wrong.stderr


def test_prometheus_scrapes_and_answers(client, address):
    for _ in range(3):
        client.chat(messages="hello")
    up = harness.wait_until(lambda: query(address, 'up{job="xcache"} == 1'),
                            60, "the first scrape")
    assert len(up) == 1
    chats = harness.wait_until(
        lambda: query(address,
                      'xcache_requests_total{method="Chat",code="OK"} >= 3'),
        what="the chats to be scraped")
    assert chats[0] >= 3
    quantile = query(address, "histogram_quantile(0.5, sum by (le) "
                              "(xcache_ttft_seconds_bucket))")
    assert 0 < quantile[0] < 60
    # Prometheus itself finds nothing to complain about in the page's types.
    metadata = json.loads(get(f"{address}/api/v1/metadata"))["data"]
    assert metadata["xcache_requests_total"][0]["type"] == "counter"
    assert metadata["xcache_ttft_seconds"][0]["type"] == "histogram"
    assert metadata["xcache_pages"][0]["type"] == "gauge"

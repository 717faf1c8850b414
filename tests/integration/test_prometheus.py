"""A real Prometheus scrapes the server and answers a query."""

import json
import shutil
import subprocess
import urllib.parse
import urllib.request

import pytest

import harness


@pytest.fixture
def prometheus(server, tmp_path):
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("Debian's package prometheus is not installed")
    (tmp_path / "prometheus.yml").write_text(json.dumps({
        "global": {"scrape_interval": "200ms", "scrape_timeout": "200ms"},
        "scrape_configs": [{
            "job_name": "xcache",
            "static_configs": [{"targets": [server.metrics_address]}]}]}))
    port = harness.free_port()
    process = subprocess.Popen(
        [program, f"--config.file={tmp_path}/prometheus.yml",
         f"--storage.tsdb.path={tmp_path}/data",
         f"--web.listen-address=127.0.0.1:{port}"],
        stdout=subprocess.DEVNULL, stderr=open(tmp_path / "log", "wb"))
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def query(prometheus, expression):
    url = f"{prometheus}/api/v1/query?" + urllib.parse.urlencode(
        {"query": expression})
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            body = json.load(answer)
    except OSError:
        return []
    assert body["status"] == "success"
    return body["data"]["result"]


def test_prometheus_scrapes_and_answers(client, prometheus):
    for _ in range(3):
        client.chat(messages="hello")
    up = harness.wait_until(
        lambda: [r for r in query(prometheus, 'up{job="xcache"}')
                 if r["value"][1] == "1"], 60, "the first scrape")
    assert len(up) == 1
    chats = harness.wait_until(
        lambda: query(prometheus,
                      'xcache_requests_total{method="Chat",code="OK"} >= 3'),
        what="the chats to be scraped")
    assert float(chats[0]["value"][1]) >= 3
    quantile = query(prometheus, "histogram_quantile(0.5, sum by (le) "
                                 "(xcache_ttft_seconds_bucket))")
    assert 0 < float(quantile[0]["value"][1]) < 60
    # Prometheus itself finds nothing to complain about in the page's types.
    with urllib.request.urlopen(f"{prometheus}/api/v1/metadata",
                                timeout=5) as answer:
        metadata = json.load(answer)["data"]
    assert metadata["xcache_requests_total"][0]["type"] == "counter"
    assert metadata["xcache_ttft_seconds"][0]["type"] == "histogram"
    assert metadata["xcache_pages"][0]["type"] == "gauge"

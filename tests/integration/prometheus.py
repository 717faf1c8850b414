"""A real Prometheus that looks at servers, twice a second as a rule. No tests here."""

import contextlib
import json
import shutil
import subprocess
import urllib.error
import urllib.parse

import pytest

import harness


@contextlib.contextmanager
def prometheus(targets, folder, rules=None, interval="500ms"):
    """Its address. `rules`: the text of a file of rules."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("Debian's package prometheus is not installed")
    config = {
        "global": {"scrape_interval": interval, "scrape_timeout": interval,
                   "evaluation_interval": interval},
        "scrape_configs": [{
            "job_name": "xcache", "static_configs": [{"targets": targets}]}]}
    if rules is not None:
        (folder / "rules.yaml").write_text(rules)
        config["rule_files"] = ["rules.yaml"]
    (folder / "prometheus.yml").write_text(json.dumps(config))
    address = f"127.0.0.1:{harness.free_port()}"
    process = subprocess.Popen(
        [program, f"--config.file={folder}/prometheus.yml",
         f"--storage.tsdb.path={folder}/data",
         f"--web.listen-address={address}"],
        stdout=subprocess.DEVNULL,
        stderr=open(folder / "prometheus.log", "wb"))

    def ready():
        try:
            return get(f"http://{address}/-/ready")
        except OSError:
            return None

    try:
        harness.wait_until(ready, 60, "Prometheus")
        yield f"http://{address}"
    finally:
        process.kill()
        process.wait()


def get(url):
    with harness.NO_PROXY.open(url, timeout=10) as answer:
        return answer.read()


def query(address, expression):
    """The values that the expression has now."""
    return [float(r["value"][1]) for r in _results(address, expression)]


def firing(address):
    """The names of the alerts that fire now."""
    return {r["metric"]["alertname"]
            for r in _results(address, 'ALERTS{alertstate="firing"}')}


def _results(address, expression):
    url = f"{address}/api/v1/query?" + urllib.parse.urlencode(
        {"query": expression})
    try:
        found = json.loads(get(url))
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{expression}: {error.read()}") from error
    return found["data"]["result"]

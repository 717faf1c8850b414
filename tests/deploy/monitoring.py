"""What an operator looks at: rules, alerts, boards, and a Prometheus that has
them. No tests here."""

import contextlib
import json
import re
import subprocess
import urllib.parse

import yaml

import harness
import manifests

PROMETHEUS = manifests.DEPLOY / "prometheus"
RULES = yaml.safe_load((PROMETHEUS / "rules.yaml").read_text())["groups"]
ALERTS = {rule["alert"]: rule for group in RULES for rule in group["rules"]
          if "alert" in rule}
RECORDS = {rule["record"]: rule for group in RULES for rule in group["rules"]
           if "record" in rule}
BOARDS = {path.stem: json.loads(path.read_text())
          for path in sorted((manifests.DEPLOY / "grafana").glob("*.json"))}


def as_seconds(text):
    """With ranges of seconds in place of minutes, and alerts that fire at once:
    nobody waits for five."""
    text = re.sub(r"\[\d+[mh]\]", "[3s]", text)
    return re.sub(r"^( *)for: \d+[mh]$", r"\1for: 1s", text, flags=re.M)


@contextlib.contextmanager
def prometheus(targets, folder):
    """With our rules, looking five times a second; its address."""
    (folder / "rules.yaml").write_text(
        as_seconds((PROMETHEUS / "rules.yaml").read_text()))
    (folder / "prometheus.yml").write_text(json.dumps({
        "global": {"scrape_interval": "200ms", "scrape_timeout": "200ms",
                   "evaluation_interval": "200ms"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [{
            "job_name": "xcache", "static_configs": [{"targets": targets}]}]}))
    port = harness.free_port()
    process = subprocess.Popen(
        ["prometheus", f"--config.file={folder}/prometheus.yml",
         f"--storage.tsdb.path={folder}/data",
         f"--web.listen-address=127.0.0.1:{port}"],
        stdout=subprocess.DEVNULL,
        stderr=open(folder / "prometheus.log", "wb"))
    address = f"http://127.0.0.1:{port}"

    def ready():
        try:
            url = f"{address}/-/ready"
            return harness.NO_PROXY.open(url, timeout=5).status == 200
        except OSError:
            return False

    try:
        harness.wait_until(ready, 60, "Prometheus")
        yield address
    finally:
        process.kill()
        process.wait()


def query(address, expression):
    url = f"{address}/api/v1/query?" + urllib.parse.urlencode(
        {"query": expression})
    try:
        with harness.NO_PROXY.open(url, timeout=10) as answer:
            body = json.load(answer)
    except harness.urllib.error.HTTPError as error:
        raise AssertionError(f"{expression}: {error.read()}") from error
    return [float(r["value"][1]) for r in body["data"]["result"]]


def as_grafana_asks(expression):
    for name, value in (("$job", "xcache"), ("$instance", ".*"),
                        ("$__rate_interval", "3s")):
        expression = expression.replace(name, value)
    return as_seconds(expression)

"""deploy/prometheus, deploy/grafana and RUNBOOK.md: rules that promtool takes,
alerts that fire when they should, no name of a metric that the server does not
have, and answers from a real Prometheus before servers at work."""

import contextlib
import json
import math
import re
import subprocess
import time

import grpc
import pytest
import yaml
from xcache.v1 import sessions_pb2

import harness
import manifests
from prometheus import prometheus, query

PROMETHEUS = manifests.DEPLOY / "prometheus"
RULES = yaml.safe_load((PROMETHEUS / "rules.yaml").read_text())["groups"]
ALERTS = {rule["alert"]: rule for group in RULES for rule in group["rules"]
          if "alert" in rule}
RECORDS = {rule["record"]: rule for group in RULES for rule in group["rules"]
           if "record" in rule}
BOARDS = {path.stem: json.loads(path.read_text())
          for path in sorted((manifests.DEPLOY / "grafana").glob("*.json"))}
RUNBOOK = (manifests.DEPLOY / "RUNBOOK.md").read_text()

# What Prometheus makes itself.
PROMETHEUS_OWN = {"up", "ALERTS"}
# What PromQL is made of, and the labels that expressions group and match by.
PROMQL = {
    "sum", "avg", "min", "max", "count", "by", "without", "on", "and", "or",
    "group_left", "rate", "increase", "histogram_quantile", "absent", "abs",
    "predict_linear", "deriv", "changes", "clamp", "clamp_min", "vector",
    "time", "avg_over_time"
}


def metrics():
    """name -> (type, labels), of METRICS.md."""
    page = (harness.SOURCE / "server/metrics/METRICS.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([^|]*) \|", page, re.M)
    assert len(rows) > 80
    return {name: (kind, set(re.findall(r"`(\w+)`", labels)))
            for name, kind, labels in rows}


def expressions():
    """(where, PromQL) of all that is deployed."""
    for rule in [*RECORDS.values(), *ALERTS.values()]:
        yield rule.get("record") or rule["alert"], rule["expr"]
    for name, board in BOARDS.items():
        for panel in board["panels"]:
            for target in panel["targets"]:
                yield f"{name}: {panel['title']}", target["expr"]
    components = manifests.KUBERNETES / "components"
    scaled = yaml.safe_load(
        (components / "keda/scaledobject.yaml").read_text())
    for trigger in scaled["spec"]["triggers"]:
        yield "keda", trigger["metadata"]["query"]
    rules = yaml.safe_load((components / "hpa/adapter-rules.yaml").read_text())
    for rule in rules["rules"]:
        yield "hpa", rule["seriesQuery"]


def words(expression):
    """Names that it uses: no strings, durations or numbers."""
    bare = re.sub(r'"[^"]*"|\[[^\]]*\]', " ", expression)
    return set(re.findall(r"(?<![\w.])[a-zA-Z_][\w:]*", bare))


def selectors(expression):
    """(metric, label) of each label that a selector asks for."""
    for name, inside in re.findall(r"([\w:]+)\{([^}]*)\}", expression):
        for label in re.findall(r"(\w+)(?:=~|!~|!=|=)", inside):
            yield name, label


def test_every_name_is_a_metric():
    known = metrics()
    names = {name: name for name in known}
    for name, (kind, _) in known.items():
        if kind == "histogram":
            del names[name]
            names.update({name + end: name for end in
                          ("_bucket", "_sum", "_count")})
    labels = {"job", "instance", "namespace", "pod", "le", "alertname",
              "alertstate"}
    of_metrics = {label for _, (_, own) in known.items() for label in own}
    seen = set()
    for where, expression in expressions():
        for word in words(expression) - PROMQL:
            if word in labels or word in of_metrics:
                continue
            assert (word in names or word in RECORDS or
                    word in PROMETHEUS_OWN), f"{where}: no metric {word}"
            seen.add(names.get(word, word))
        for name, label in selectors(expression):
            if label in labels or name in PROMETHEUS_OWN or name in RECORDS:
                continue
            assert label in known[names[name]][1], f"{where}: {name}.{label}"
    assert len(seen & set(known)) > 50
    # A rule that nothing reads is none.
    assert set(RECORDS) <= seen


def test_what_no_metric_is_is_found():
    assert words('sum by (job) (rate(xcache_ttft_seconds_bucket{le="5"}[5m])) '
                 "> 14.4 * 0.001") - PROMQL == {
                     "job", "xcache_ttft_seconds_bucket", "le"}


def promtool(*arguments):
    done = subprocess.run(["promtool", *arguments], cwd=PROMETHEUS,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_takes_the_rules():
    promtool("check", "rules", "rules.yaml")


def test_each_alert_fires_and_is_silent():
    """Of every alert one test that it fires, and one that it does not."""
    tests = yaml.safe_load(
        (PROMETHEUS / "rules_test.yaml").read_text())["tests"]
    fires, silent = set(), set()
    for test in tests:
        for case in test["alert_rule_test"]:
            (fires if case["exp_alerts"] else silent).add(case["alertname"])
    assert fires == silent == set(ALERTS)
    promtool("test", "rules", "rules_test.yaml")


def test_the_operator_gets_the_same_rules():
    copy = manifests.KUBERNETES / "components/monitoring/prometheusrule.yaml"
    assert yaml.safe_load(copy.read_text())["spec"]["groups"] == RULES, (
        "run deploy/prometheus/prometheus_rule.sh")


def test_the_runbook_has_every_alert():
    headings = re.findall(r"^### (.*)$", RUNBOOK, re.M)
    assert sorted(headings) == sorted(ALERTS)
    for name, rule in ALERTS.items():
        assert rule["annotations"]["runbook_url"] == (
            f"deploy/RUNBOOK.md#{name.lower()}")
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["description"]
        assert rule["labels"]["severity"] in ("critical", "warning")
        text = RUNBOOK.partition(f"### {name}\n")[2].partition("\n### ")[0]
        for part in ("**Meaning.**", "**First look.**", "**Remedy.**"):
            assert part in text, f"{name}: no {part}"
    # What it tells to look at exists.
    known = metrics()
    for name in re.findall(r"`(xcache_\w+)", RUNBOOK):
        assert name in known, name
    flags = subprocess.run([harness.SERVER, "--help"], capture_output=True,
                           text=True, check=True).stdout
    for flag in re.findall(r"`(--[a-z-]+)`", RUNBOOK):
        assert flag in flags, flag


def test_boards_are_whole():
    assert set(BOARDS) == {"users", "cache", "fleet"}
    uids = {board["uid"] for board in BOARDS.values()}
    assert len(uids) == 3
    for board in BOARDS.values():
        ids = [panel["id"] for panel in board["panels"]]
        assert len(ids) == len(set(ids)) >= 12
        places = set()
        for panel in board["panels"]:
            assert panel["title"] and panel["targets"]
            assert panel["datasource"]["uid"] == "${datasource}"
            at = panel["gridPos"]
            assert at["x"] + at["w"] <= 24
            mine = {(x, y) for x in range(at["x"], at["x"] + at["w"])
                    for y in range(at["y"], at["y"] + at["h"])}
            assert not mine & places, panel["title"]
            places |= mine
        names = {v["name"] for v in board["templating"]["list"]}
        for panel in board["panels"]:
            for target in panel["targets"]:
                used = set(re.findall(r"\$(\w+)", target["expr"]))
                assert used <= names | {"__rate_interval"}, target["expr"]


# ---- A real Prometheus, before real servers.

def as_seconds(text):
    """With ranges of seconds in place of minutes: nobody waits for five."""
    return re.sub(r"\[\d+[mh]\]", "[3s]", text)


def as_grafana_asks(expression):
    for name, value in (("$job", "xcache"), ("$instance", ".*"),
                        ("$__rate_interval", "3s")):
        expression = expression.replace(name, value)
    return as_seconds(expression)


@pytest.mark.timeout(180)
def test_every_query_has_an_answer(tiny_model, tmp_path):
    """Of two servers that chat, fail, spill and restore: panels with numbers
    in them, and alerts that have something to compare and are silent."""
    panels = {f"{name}: {panel['title']}: {target['expr']}":
              as_grafana_asks(target["expr"])
              for name, board in BOARDS.items() for panel in board["panels"]
              for target in panel["targets"]}
    names = [f"session-{i}" for i in range(100)]
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        # Conversations that come back from the disk, later.
        with harness.Server(tiny_model, folder) as server:
            for name in names:
                server.client().sessions.CreateSession(
                    sessions_pb2.CreateSessionRequest(id=name))
                server.client().chat(name, f"{name}: a few words " * 60)
            server.stop()
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(harness.Server(tiny_model, folder))
                   for folder in (tmp_path / "a", tmp_path / "b")]
        clients = [server.client() for server in servers]
        (tmp_path / "prometheus").mkdir()
        address = stack.enter_context(prometheus(
            [s.metrics_address for s in servers], tmp_path / "prometheus",
            as_seconds((PROMETHEUS / "rules.yaml").read_text())))
        silent = panels
        for name in names:
            for client in clients:
                client.chat(name, "go on")
                client.chat(name, "and on")
                with harness.fails_with(grpc.StatusCode.NOT_FOUND):
                    client.sessions.GetSession(
                        sessions_pb2.GetSessionRequest(id="nobody"))
            # Not even NaN: something was divided by something.
            silent = {text: expression for text, expression in silent.items()
                      if not (values := query(address, expression)) or
                      not all(map(math.isfinite, values))}
            if not silent:
                break
            time.sleep(0.1)
        assert not silent, "\n".join(silent)
        for name, rule in RECORDS.items():
            assert query(address, name), name
        # Of an alert, what it compares.
        for name, rule in ALERTS.items():
            for part in re.split(r"\nand (?:on \([\w, ]+\) )?", rule["expr"]):
                asked = re.sub(r"\s+(>|<|==) [\d.]+( \* [\d.]+)?$", "", part)
                if not part.startswith("absent"):
                    assert asked != part, name
                    assert query(address, as_seconds(asked)), name
        firing = query(address, 'ALERTS{alertstate="firing"}')
        assert not firing
        # And one that fires, by a real fault.
        servers[1].kill()
        harness.wait_until(lambda: query(
            address, 'ALERTS{alertname="XCacheDown"}'), 20, "XCacheDown")

"""deploy/prometheus, deploy/grafana and RUNBOOK.md: rules that promtool takes,
alerts that fire when they should, no name of a metric that the server does not
have. What a real Prometheus says before a fleet at work:
tests/integration/fleet/test_dashboards.py."""

import re
import subprocess

import yaml

import harness
import manifests
from monitoring import ALERTS, BOARDS, PROMETHEUS, RECORDS, RULES

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
    files = sorted(PROMETHEUS.glob("rules_*test.yaml"))
    fires, silent = set(), set()
    for path in files:
        for test in yaml.safe_load(path.read_text())["tests"]:
            for case in test["alert_rule_test"]:
                (fires if case["exp_alerts"] else silent).add(
                    case["alertname"])
    assert fires == silent == set(ALERTS)
    promtool("test", "rules", *files)


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

"""What an operator looks at: rules, alerts, boards. No tests here."""

import json
import re

import yaml

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


def as_grafana_asks(expression):
    for name, value in (("$job", "xcache"), ("$instance", ".*"),
                        ("$__rate_interval", "3s")):
        expression = expression.replace(name, value)
    return as_seconds(expression)

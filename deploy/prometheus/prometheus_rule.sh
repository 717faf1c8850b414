#!/usr/bin/env bash
# Writes rules.yaml as the resource that Prometheus Operator takes.
set -euo pipefail
cd "$(dirname "$0")"
{
  cat <<'HEAD'
# Made of deploy/prometheus/rules.yaml by deploy/prometheus/prometheus_rule.sh.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: xcache
spec:
HEAD
  sed -e '/^#/d' -e 's/^\(.\)/  \1/' rules.yaml
} >../kubernetes/components/monitoring/prometheusrule.yaml

"""Values that people are likely to get wrong: each is refused before anything is installed, in words that help."""

from __future__ import annotations

import pytest
from support.chart import CHART
from support.helm_chart import helm, template

SENTENCES = {
    "replicaCount=2": "SQLite has one writer",
    "replicaCount=0": "SQLite has one writer",
    "config.backends=null": "there is nothing to calibrate",
    'config.listen={"port":80}': "service.port",
    'config.store={"path":"/data/c.db"}': "the volume of `persistence`",
    'config.gateways={"haproxy":{"port":1}}': "haproxyAgent.enabled",
    'config.backends.chat.api_key={"file":"/run/secrets/calibrator/missing"}': "there is no secrets.missing",
    'extraEnv=[{"name":"CALIBRATOR_LISTEN__PORT","value":"80"}]': "CALIBRATOR_LISTEN__PORT would move",
    "terminationGracePeriodSeconds=19": "preStopSleepSeconds (5) counts inside it",
    "preStopSleepSeconds=16": "terminationGracePeriodSeconds: 30 is too short",
    'haproxyAgent={"enabled":true,"port":8300}': "Give two ports",
    "networkPolicy.enabled=true": "could reach no engine",
    "podDisruptionBudget.enabled=true": "give one of minAvailable and maxUnavailable",
    'podDisruptionBudget={"enabled":true,"minAvailable":1,"maxUnavailable":0}': "give one of",
    'prometheusRule={"enabled":true,"disabled":{"CalibratorHeadroomLow":true}}': "Give one of Calibrator",
}
BY_THE_SCHEMA = {
    "replicas=1": "replicas is not allowed",
    "autoscaling.enabled=true": "autoscaling is not allowed",
    'replicaCount="1"': "replicaCount: Invalid type",
    'image.tag="latest"': "image.tag",
    'image.digest="0123"': "image.digest",
    'image.repository="registry.example.com:5000/x"': "image.repository",
    'image.pullPolicy="Sometimes"': "image.pullPolicy",
    'imagePullSecrets=["registry"]': "imagePullSecrets.0",
    "service.port=0": "service.port",
    'service.port="http"': "service.port",
    'service.type="ExternalName"': "service.type",
    'persistence.size="ten gigabytes"': "persistence.size",
    'persistence.accessModes=["ReadOnlyMany"]': "persistence.accessModes.0",
    'secrets={"token":"s3cret"}': "secrets.token: Invalid type",
    'secrets={"token":{"name":"x","key":"y"}}': "secretName is required",
    'secrets={"../token":{"secretName":"x","key":"y"}}': "../token",
    'serviceMonitor.interval="fast"': "serviceMonitor.interval",
    "serviceMonitor.interval=30": "serviceMonitor.interval: Invalid type",
    'prometheusRule.disabled=["CalibratorCapShrank"]': "prometheusRule.disabled: Invalid type",
    'prometheusRule.runbookUrl="runbook.md"': "prometheusRule.runbookUrl",
    'podDisruptionBudget.minAvailable="half"': "podDisruptionBudget.minAvailable",
    'extraEnv={"A":"b"}': "extraEnv: Invalid type",
    'extraEnv=[{"value":"b"}]': "name is required",
    'terminationGracePeriodSeconds="30s"': "terminationGracePeriodSeconds: Invalid type",
    # the configuration itself
    "config.backend={}": "backend is not allowed",
    'config.backends.chat.evry="6h"': "evry is not allowed",
    "config.backends.chat.every=6": "every: Invalid type",
    'config.backends.chat.every="often"': "config.backends.chat.every",
    "config.backends.other={}": "model is required",
    'config.backends.chat.objectives="ttft p99 <= 2s"': "objectives: Invalid type",
    "config.backends.chat.objectives=[]": "objectives",
    "config.backends.chat.fallback_cap=0": "fallback_cap",
    'config.backends.chat.fallback_cap="16"': "fallback_cap: Invalid type",
    'config.backends.chat.api_key="sk-123"': "api_key",
    "config.backends.chat.burst=false": "burst",
    'config.backends.chat.publish="both"': "publish",
    "config.backends.chat.safety_margin_ratio=1": "safety_margin_ratio",
    'config.auth.operator_tokens=["s3cret"]': "operator_tokens.0",
    'config.store={"url":"postgresql://db"}': "url is not allowed",
}


@pytest.mark.parametrize(("setting", "words"), SENTENCES.items(), ids=SENTENCES)
def test_a_combination_is_refused_with_a_sentence(setting: str, words: str) -> None:
    answer = template("minimal", setting)
    assert answer.returncode != 0
    assert words in answer.stderr


@pytest.mark.parametrize(("setting", "words"), BY_THE_SCHEMA.items(), ids=BY_THE_SCHEMA)
def test_a_value_is_refused_by_the_schema(setting: str, words: str) -> None:
    answer = template("minimal", setting)
    assert answer.returncode != 0
    assert "don't meet the specifications of the schema" in answer.stderr
    assert words in answer.stderr


def test_old_clusters_are_refused() -> None:
    old = helm("template", "r", CHART, "-f", CHART / "ci" / "minimal-values.yaml", "--kube-version", "1.29.0")
    assert old.returncode != 0
    assert ">=1.30.0-0" in old.stderr

"""Values that people are likely to get wrong: each is refused before anything is installed, in words that help."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import jsonschema
import pytest
import yaml
from generate_chart import CHART
from support.helm_chart import CASES, helm, template

Values = dict[str, Any]
MINIMAL = CHART / "ci" / "minimal-values.yaml"
SCHEMA: Values = json.loads((CHART / "values.schema.json").read_text())
DEFAULTS: Values = yaml.safe_load((CHART / "values.yaml").read_text())
VALIDATOR = jsonschema.Draft7Validator(SCHEMA)
OF_TWO_TYPES = {  # null or a quantity by default, and as well
    ("persistence.enabled", bool),
    ("podDisruptionBudget.minAvailable", int),
    ("podDisruptionBudget.maxUnavailable", int),
    ("resources.requests.cpu", int),
    ("resources.requests.memory", int),
    ("resources.limits.memory", int),
}
SENTENCES = {
    "replicaCount=2": "replicaCount: 2 is refused",
    "replicaCount=0": "replicaCount: 0 is refused",
    'postgresql={"enabled":true}': "postgresql.secretName is empty",
    'postgresql={"secretName":"db"}': "state would go to SQLite",
    'postgresql={"caSecretName":"db"}': "state would go to SQLite",
    'postgresql={"enabled":true,"secretName":"db"};persistence.enabled=true': "persistence and postgresql",
    'postgresql={"enabled":true,"secretName":"db"};persistence.existingClaim="old"': "persistence and postgresql",
    'secrets={"postgresql-url":{"secretName":"db","key":"url"}}': "the chart's own name",
    'config.store={"postgresql":{"env":"URL"}}': "give postgresql.enabled: true",
    'config.store={"ca_file":"/ca.pem"}': "give postgresql.enabled: true",
    'postgresql={"enabled":true,"secretName":"db"};networkPolicy={"enabled":true,"egress":[{}]}': "reach its database",
    "networkPolicy.postgresqlEgress=[{}]": "postgresql.enabled is false",
    'config.listen={"host":"::"}': "the address is listenHost",
    'config.listen={"tls":{"cert_file":"/c","client_ca_file":"/a"}}': "lock out Kubernetes' own probes",
    'extraEnv=[{"name":"CALIBRATOR_STORE__POSTGRESQL__ENV","value":"X"}]': "extraEnv CALIBRATOR_STORE__POSTGRESQL__ENV",
    "config.backends=null": "there is nothing to calibrate",
    'config.listen={"port":80}': "service.port",
    'config.store={"path":"/data/c.db"}': "the volume of `persistence`",
    'config.gateways={"haproxy":{"port":1}}': "haproxyAgent.enabled",
    'config.backends.chat.api_key={"file":"/run/secrets/calibrator/missing"}': "there is no secrets.missing",
    'extraEnv=[{"name":"CALIBRATOR_LISTEN__PORT","value":"80"}]': "extraEnv CALIBRATOR_LISTEN__PORT",
    "terminationGracePeriodSeconds=19": "preStopSleepSeconds (5) counts inside it",
    "preStopSleepSeconds=16": "terminationGracePeriodSeconds: 30 is too short",
    'haproxyAgent={"enabled":true,"port":8300}': "Give two ports",
    "networkPolicy.enabled=true": "networkPolicy.egress is empty",
    "podDisruptionBudget.enabled=true": "give one of minAvailable and maxUnavailable",
    'podDisruptionBudget={"enabled":true,"minAvailable":1,"maxUnavailable":0}': "give one of",
    'listenHost="127.0.0.1"': "the pod's own loopback",
    'podLabels={"app.kubernetes.io/name":"x"}': "selectors rely on it",
    'serviceMonitor.interval="5s"': "longer than the interval",
    'extraVolumes=[{"name":"tmp","emptyDir":{}}]': 'extraVolumes defines the volume "tmp"',
    'extraVolumeMounts=[{"name":"ca","mountPath":"/ca"}]': 'mounts "ca", which is not a volume',
    'extraContainers=[{"name":"calibrator","image":"x"}]': 'extraContainers has a container "calibrator"',
    'prometheusRule={"enabled":true,"disabled":{"CalibratorHeadroomLow":true}}': "Give one of Calibrator",
}
BY_THE_SCHEMA = (
    "replicas=1",
    "autoscaling.enabled=true",
    'replicaCount="1"',
    'image.tag="latest"',
    'image.digest="0123"',
    'image.repository="registry.example.com:5000/x"',
    'image.pullPolicy="Sometimes"',
    'imagePullSecrets=["registry"]',
    "service.port=0",
    'service.port="http"',
    'service.type="ExternalName"',
    'persistence.size="ten gigabytes"',
    'persistence.accessModes=["ReadOnlyMany"]',
    'secrets={"token":"s3cret"}',
    'secrets={"token":{"name":"x","key":"y"}}',
    'secrets={"../token":{"secretName":"x","key":"y"}}',
    'serviceMonitor.interval="fast"',
    "serviceMonitor.interval=30",
    'prometheusRule.disabled=["CalibratorCapShrank"]',
    'prometheusRule.runbookUrl="runbook.md"',
    'podDisruptionBudget.minAvailable="half"',
    'extraEnv={"A":"b"}',
    'extraEnv=[{"value":"b"}]',
    'terminationGracePeriodSeconds="30s"',
    "config.backend={}",
    'config.backends.chat.evry="6h"',
    "config.backends.chat.every=6",
    'config.backends.chat.every="often"',
    "config.backends.other={}",
    'config.backends.chat.objectives="ttft p99 <= 2s"',
    "config.backends.chat.objectives=[]",
    "config.backends.chat.fallback_cap=0",
    'config.backends.chat.fallback_cap="16"',
    'config.backends.chat.api_key="sk-123"',
    "config.backends.chat.burst=false",
    'config.backends.chat.publish="both"',
    "config.backends.chat.safety_margin_ratio=1",
    'config.auth.operator_tokens=["s3cret"]',
    'config.store={"url":"postgresql://db"}',
    'postgresql.url="postgresql://user:password@host/db"',
    'postgresql.password="s3cret"',
    'postgresql.enabled="true"',
    'postgresql={"enabled":true,"secretName":"db","key":""}',
    'persistence.enabled="yes"',
    # names and labels
    'nameOverride="My App"',
    'fullnameOverride="My_App"',
    'fullnameOverride="1st"',
    'commonLabels={"a b":"c"}',
    'commonLabels={"a":true}',
    'podLabels={"a":1}',
    'podAnnotations={"a":1}',
    'serviceAccount.name="My Account"',
    'serviceAccount.annotations={"a":true}',
    'persistence.existingClaim="My Claim"',
    'secrets={"a":{"secretName":"x y","key":"y"}}',
    'postgresql={"enabled":true,"secretName":"My Secret"}',
    # amounts
    'image.registry="https://registry.example.com"',
    'image.repository="Calibrator"',
    "image.tag=0.1",
    'persistence.size="1GB"',
    'resources={"limits":{"memory":"1GB"}}',
    'resources={"requests":{"cpu":"half"}}',
    'resources={"limit":{"memory":"1Gi"}}',
    "replicaCount=1.5",
    "service.port=70000",
    'podDisruptionBudget.minAvailable="150%"',
    "livenessProbe.failureThreshold=0",
    'livenessProbe={"initialDelay":5}',
    "preStopSleepSeconds=-1",
    # the pod
    'podSecurityContext={"runAsUser":0}',
    'podSecurityContext={"runAsUser":"65532"}',
    'podSecurityContext={"runAsNonRot":true}',
    'securityContext={"privileged":true}',
    'securityContext={"readOnlyRootFilesystem":"true"}',
    'nodeSelector={"gpu":true}',
    'tolerations={"key":"x"}',
    "affinity=[]",
    'topologySpreadConstraints=[{"maxSkew":1}]',
    "priorityClassName=5",
    'extraEnv=[{"name":"A","value":1}]',
    'extraEnv=[{"name":"A B","value":"x"}]',
    'extraEnv=[{"name":"A","val":"x"}]',
    'extraEnvFrom=[{"secret":"x"}]',
    "extraVolumes=[{}]",
    'extraVolumeMounts=[{"name":"x"}]',
    'extraContainers=[{"image":"x"}]',
    "extraManifests=[1]",
    "config=null",
    'listenHost=""',
)


@pytest.mark.parametrize(("setting", "words"), SENTENCES.items(), ids=SENTENCES)
def test_a_combination_is_refused_with_a_sentence(setting: str, words: str) -> None:
    answer = template("minimal", *setting.split(";"))
    assert answer.returncode != 0
    assert words in answer.stderr


def changed(setting: str) -> tuple[tuple[str, ...], Values]:
    """The path, and the minimal values with that setting, on top of the chart's own."""
    key, _, text = setting.partition("=")
    path = tuple(key.split("."))
    values = merged(deepcopy(DEFAULTS), yaml.safe_load(MINIMAL.read_text()))
    place = values
    for part in path[:-1]:
        place = place.setdefault(part, {})
    value = json.loads(text)
    if value is None:  # to Helm: take it away
        place.pop(path[-1], None)
    elif isinstance(value, dict):  # to Helm: merge
        place[path[-1]] = merged(place.get(path[-1]) or {}, value)
    else:
        place[path[-1]] = value
    return path, values


def merged(below: Values, above: Values) -> Values:
    both = {key for key in below.keys() & above.keys() if isinstance(below[key], dict) and isinstance(above[key], dict)}
    return {**below, **above, **{key: merged(below[key], above[key]) for key in both}}


def refusals(values: Values) -> list[tuple[str, ...]]:
    return [tuple(map(str, error.absolute_path)) for error in VALIDATOR.iter_errors(values)]


@pytest.mark.parametrize("setting", BY_THE_SCHEMA)
def test_a_value_is_refused_by_the_schema_where_it_stands(setting: str) -> None:
    path, values = changed(setting)
    found = refusals(values)
    assert found
    assert all(place[: len(path)] == path[: len(place)] for place in found), found


def test_the_schema_accepts_every_example() -> None:
    for case in CASES:
        assert refusals(merged(DEFAULTS, yaml.safe_load(case.read_text()))) == [], case.name


def scalars(values: Values, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    """Every value that is no map; what is free-form inside is left to the cases above."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from scalars(value, (*path, key))
        elif not isinstance(value, dict):
            yield (*path, key), value


def test_no_value_takes_another_type() -> None:
    """Each of values.yaml in turn, as text, number, truth, list and map."""
    kinds = {str: "no such thing", int: 7, bool: True, list: ["x"], dict: {"x": "y"}}
    taken = set()
    for path, default in scalars(DEFAULTS):
        if path[0] in {"config", "commonLabels"}:
            continue
        top = jsonschema.Draft7Validator(SCHEMA["properties"][path[0]])
        for kind, wrong in kinds.items():
            if top.is_valid(replaced(DEFAULTS[path[0]], path[1:], wrong)) and type(default) is not kind:
                taken.add((".".join(path), kind))
    assert taken == OF_TWO_TYPES


def replaced(values: Any, path: tuple[str, ...], value: object) -> Any:
    return {**values, path[0]: replaced(values[path[0]], path[1:], value)} if path else value


def test_helm_applies_the_schema() -> None:
    answer = template("minimal", "replicas=1")
    assert answer.returncode != 0
    assert "don't meet the specifications of the schema" in answer.stderr
    assert "replicas is not allowed" in answer.stderr


def test_old_clusters_are_refused() -> None:
    old = helm("template", "r", CHART, "-f", CHART / "ci" / "minimal-values.yaml", "--kube-version", "1.29.0")
    assert old.returncode != 0
    assert ">=1.30.0-0" in old.stderr

"""The dashboard and Grafana's alerts are what their generator prints, and keep the rules of good dashboards."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard
from support.prometheus_process import REPOSITORY, RULES, accepted, as_query

from calibrator.web.prometheus.metrics import METRICS, PREFIX

FOLDER = REPOSITORY / "deploy" / "grafana"
BOARD: dict[str, Any] = json.loads((FOLDER / "dashboard.json").read_text())
PANELS: list[dict[str, Any]] = BOARD["panels"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]
VARIABLES = {variable["name"]: variable for variable in BOARD["templating"]["list"]}


@pytest.mark.parametrize("name", ["dashboard.json", "alerts.yaml"])
def test_the_committed_file_is_what_the_generator_prints(name: str) -> None:
    made = runpy.run_path(str(FOLDER / "generate.py"))["files"]()
    assert (FOLDER / name).read_text() == made[name], "run deploy/grafana/generate.py"


def test_grafanas_model_knows_every_key() -> None:
    """It drops what it does not know, so loading and writing must change nothing."""
    again = json.loads(json.dumps(Dashboard.from_json(BOARD), cls=JSONEncoder))
    assert again == BOARD


def test_the_board_can_be_provisioned_and_not_edited() -> None:
    assert BOARD["uid"] == "calibrator"
    assert BOARD["editable"] is False
    assert BOARD["schemaVersion"] >= 36
    assert "__inputs" not in BOARD
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)


def test_variables_follow_the_data() -> None:
    assert list(VARIABLES) == ["datasource", "job", "instance", "backend", "metric"]
    assert VARIABLES["datasource"]["query"] == "prometheus"
    for name in ("job", "instance", "backend"):
        variable = VARIABLES[name]
        assert variable["refresh"] == 2, "again when the time range changes"
        assert (variable["multi"], variable["includeAll"], variable["allValue"]) == (True, True, ".+")
        assert variable["datasource"]["uid"] == "${datasource}"


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_says_what_it_shows(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert panel["targets"]
    assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_a_query_keeps_to_the_choice_and_to_metrics_that_exist(expression: str) -> None:
    kinds = {PREFIX + metric.name: metric.kind for metric in METRICS}
    of_process = {PREFIX + metric.name for metric in METRICS if "backend" not in metric.labels}
    for name, matchers, window in re.findall(r"(calibrator_\w+)\{([^}]*)\}(\[[^\]]*\])?", expression):
        assert 'job=~"$job", instance=~"$instance"' in matchers
        assert 'backend=~"$backend"' in matchers or name in of_process
        assert (kinds[name] == "counter") == (window == "[$__rate_interval]"), "counters inside rate, nothing else"
    assert "vector(0)" not in expression


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_several_instances_of_one_backend_are_one_line(expression: str) -> None:
    """Every selector stands in an aggregation that leaves the instance out, or is about instances."""
    for selector in re.finditer(r"calibrator_\w+\{", expression):
        before = expression[: selector.start()]
        kept = re.search(r"(?:max|min|sum)(?: by \(([\w, ]+)\))? \(?(?:rate\(|increase\(|scalar\()?$|min\($", before)
        assert kept, expression
        if "instance" in (kept[1] or ""):
            assert re.search(r"lease_held|store_up|generator", expression), "only what an instance says of itself"


def test_every_expression_is_valid(tmp_path: Path) -> None:
    asked = [*EXPRESSIONS, *(annotation["expr"] for annotation in BOARD["annotations"]["list"])]
    records = [{"record": f"panel:{number}", "expr": as_query(text)} for number, text in enumerate(asked)]
    path = tmp_path / "panels.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": records}]}))
    accepted("check", "rules", path)


def test_what_matters_is_on_the_board() -> None:
    shown = " ".join(EXPRESSIONS)
    for name in (
        "recommended_concurrency", "in_flight_requests", "headroom_ratio", "curve_latency_seconds",
        "objective_limit_seconds", "sweeps_total", "guard_trips_total", "probe_requests_total", "probe_tokens_total",
        "probe_overload_seconds_total", "generator_lag_seconds", "inconclusive_levels", "gateway_clients",
        "lease_held", "store_up",
    ):  # fmt: skip
        assert PREFIX + name + "{" in shown, name


def test_grafanas_alerts_are_those_of_the_rules() -> None:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    ours = {rule["alert"]: rule for group in groups for rule in group["rules"] if "alert" in rule}
    (group,) = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"]
    theirs = {rule["title"]: rule for rule in group["rules"]}
    assert set(theirs) == set(ours)
    assert len({rule["uid"] for rule in theirs.values()}) == len(ours)
    for name, rule in theirs.items():
        query, condition = rule["data"]
        assert query["model"]["expr"].split() == ours[name]["expr"].split()
        assert (rule["condition"], condition["model"]["expression"]) == ("B", "is_number($A)")
        assert (rule["for"], rule["labels"]) == (ours[name]["for"], ours[name]["labels"])
        assert rule["noDataState"] == "OK", "in Prometheus, too, no series is no alert"
        words = {key: text.replace("$values.A.Value", "$value") for key, text in rule["annotations"].items()}
        assert words == ours[name]["annotations"]
        assert len(rule["uid"]) <= 40, "Grafana's limit"

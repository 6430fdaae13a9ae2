"""The rules as promtool sees them, and what every alert must carry."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.prometheus_process import REPOSITORY, RULES, accepted, promtool

from calibrator.web.prometheus.metrics import METRICS, PREFIX

HERE = Path(__file__).parent
UNIT_TESTS = sorted(HERE.glob("*_test.yaml"))
GROUPS = yaml.safe_load(RULES.read_text())["groups"]
EVERY_RULE: list[dict[str, Any]] = [rule for group in GROUPS for rule in group["rules"]]
TESTS: list[dict[str, Any]] = [test for path in UNIT_TESTS for test in yaml.safe_load(path.read_text())["tests"]]
ALERTS = {rule["alert"]: rule for rule in EVERY_RULE if "alert" in rule}


def anchors(page: str) -> set[str]:
    """As a forge makes them of one-word headings."""
    return {heading.lower() for heading in re.findall(r"^## (\w+)$", page, re.MULTILINE)}


def test_promtool_accepts_the_rules() -> None:
    accepted("check", "rules", RULES)


def test_promtool_accepts_a_configuration_with_them(tmp_path: Path) -> None:
    config = tmp_path / "prometheus.yml"
    config.write_text(yaml.safe_dump({"rule_files": [str(RULES)]}))
    accepted("check", "config", config)


@pytest.mark.parametrize("path", UNIT_TESTS, ids=lambda path: path.stem)
def test_alerts_fire_and_stay_silent_as_they_should(path: Path) -> None:
    accepted("test", "rules", path)


@pytest.mark.parametrize("path", UNIT_TESTS, ids=lambda path: path.stem)
def test_groups_are_evaluated_in_the_order_of_the_file(path: Path) -> None:
    """Promtool's own order is a matter of chance; alerts before the records that they read see the step before."""
    test = yaml.safe_load(path.read_text())
    (rules,) = test["rule_files"]
    groups = [group["name"] for group in yaml.safe_load((HERE / rules).read_text())["groups"]]
    assert len(groups) == 1 or test["group_eval_order"] == groups


def test_the_unit_tests_can_fail(tmp_path: Path) -> None:
    """A rule whose threshold is off by far is found."""
    invalid_reasons = tmp_path / "rules.yaml"
    invalid_reasons.write_text(RULES.read_text().replace("avg5m < 0.05", "avg5m < 0.5"))
    test = tmp_path / "headroom_test.yaml"
    test.write_text((HERE / test.name).read_text().replace("../../deploy/prometheus/rules.yaml", str(invalid_reasons)))
    answer = promtool("test", "rules", test)
    assert answer.returncode != 0
    assert "CalibratorHeadroomCritical" in answer.stdout + answer.stderr


def test_every_alert_has_a_test_that_fires_and_one_with_two_instances() -> None:
    fired: set[str] = set()
    doubled: set[str] = set()
    for group in TESTS:
        named = {test["alertname"] for test in group.get("alert_rule_test", []) if test["exp_alerts"]}
        instances = {re.search(r'instance="(\w)"', one["series"])[1] for one in group["input_series"]}  # type: ignore[index]  # every series has one
        fired |= named
        doubled |= named if len(instances) > 1 else set()
    assert fired == doubled == set(ALERTS)


def test_every_alert_has_a_test_in_which_it_stays_silent_beside_series_that_look_like_it() -> None:
    """Promtool compares all alerts of a name, so whatever is not expected must not fire."""
    silent = set()
    for group in TESTS:
        series = " ".join(one["series"] for one in group["input_series"])
        told = set(re.findall(r'(?:backend|job)="(\w+)"', series))
        for test in group.get("alert_rule_test", []):
            named = {value for alert in test["exp_alerts"] for value in alert["exp_labels"].values()}
            if told - named - {"calibrator"} or not test["exp_alerts"]:
                silent.add(test["alertname"])
    assert silent == set(ALERTS)


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_how_bad_it_is_and_what_to_do(name: str) -> None:
    alert = ALERTS[name]
    assert re.fullmatch(r"Calibrator[A-Z]\w+", name)
    assert alert["for"] != "0s"
    assert alert["labels"]["severity"] in {"critical", "warning", "info"}
    assert "{{" not in alert["annotations"]["summary"], "a constant summary groups"
    assert "{{ " in alert["annotations"]["description"]
    page, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    assert anchor == name.lower()
    assert anchor in anchors((REPOSITORY / page).read_text())


def test_the_runbook_has_no_section_of_an_alert_that_is_gone() -> None:
    page = (RULES.parent / "RUNBOOK.md").read_text()
    assert anchors(page) == {name.lower() for name in ALERTS}


def test_rules_read_only_metrics_and_labels_that_exist() -> None:
    labels = {PREFIX + metric.name: set(metric.labels) for metric in METRICS}
    for rule in EVERY_RULE:
        for record, name, matchers in re.findall(r"(backend:)?(calibrator_\w+)(?::\w+)?(?:\{([^}]*)\})?", rule["expr"]):
            assert name in labels, (rule, record)
            assert set(re.findall(r"(\w+)[!=]", matchers)) <= labels[name], rule


def test_no_alert_depends_on_the_instance() -> None:
    """A raw series in an alert is always aggregated; recorded ones were when they were made."""
    for rule in EVERY_RULE:
        raw = re.findall(r"(?<!:)\bcalibrator_\w+", rule["expr"])
        aggregated = re.findall(r"\b(?:by|without) \(", rule["expr"])
        assert not raw or aggregated or rule.get("alert") == "CalibratorAbsent", rule

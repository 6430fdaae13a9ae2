"""Writes dashboard.json and alerts.yaml beside itself: `python deploy/grafana/generate.py`. A test compares.

Rules of the dashboard: every query filters by the variables job, instance and backend; counters appear only inside
increase or rate over `$__rate_interval`; every panel has a unit and a description; missing data is never filled in.
Several instances report the same backend: queries take the maximum over them, for headroom the minimum.

The alerts are those of ../prometheus/rules.yaml, for evaluation by Grafana. Its recording rules stay in Prometheus,
which has to load the first group of that file.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.builders import prometheus, statetimeline, timeseries, trend
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import (
    Dashboard,
    DashboardCursorSync,
    DataSourceRef,
    DataTransformerConfig,
    VariableOption,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

HERE = Path(__file__).parent
RULES = HERE.parent / "prometheus" / "rules.yaml"
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
OURS = 'job=~"$job", instance=~"$instance"'
BACKEND = f'{OURS}, backend=~"$backend"'
GRAFANA_DATASOURCE_UID = "prometheus"  # of the alerts; change it to that of your data source
WIDTH, HEIGHT = 12, 8
AnyPanel = TypeVar("AnyPanel", timeseries.Panel, statetimeline.Panel, trend.Panel)


def greatest(metric: str, *by: str, matchers: str = "") -> str:
    return f"max by ({', '.join(('backend', *by))}) (calibrator_{metric}{{{BACKEND}{matchers}}})"


def least(metric: str) -> str:
    return f"min by (backend) (calibrator_{metric}{{{BACKEND}}})"


def grown(metric: str, *by: str, function: str = "rate") -> str:
    of = f"calibrator_{metric}{{{BACKEND}}}[$__rate_interval]"
    return f"sum by ({', '.join(('backend', *by))}) ({function}({of}))"


@dataclass(frozen=True, slots=True)
class Shown:
    """One panel; `queries` are (expression, legend)."""

    title: str
    description: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    is_timeline: bool = False


PANELS = (
    Shown(
        "Cap and requests in flight",
        "The cap, the cap advertised to gateways, and what live users and probes use of it. Requests "
        "above the cap queue or are rejected.",
        "suffix: requests",
        (
            (greatest("recommended_concurrency"), "{{backend}} cap"),
            (greatest("gateway_concurrency"), "{{backend}} advertised to gateways"),
            (greatest("in_flight_requests", "kind"), "{{backend}} {{kind}}"),
            (greatest("in_flight_peak_requests"), "{{backend}} 60 s peak"),
        ),
    ),
    Shown(
        "Headroom",
        "Unused share of the cap, and its 60 s minimum. An alert fires below 5 %. Below 0 nothing enforces the cap.",
        "percentunit",
        ((least("headroom_ratio"), "{{backend}}"), (least("headroom_min_ratio"), "{{backend}} 60 s minimum")),
    ),
    Shown(
        "Free requests",
        "Cap minus live requests in flight, and the ready replicas that the cap is based on.",
        "short",
        ((least("headroom"), "{{backend}} headroom"), (greatest("ready_replicas"), "{{backend}} ready replicas")),
    ),
    Shown(
        "Capacity of one replica",
        "Measured capacity with its interval, and the cap derived from it. If the interval is wide, raise the budget.",
        "suffix: requests",
        (
            (greatest("capacity", "bound"), "{{backend}} {{bound}}"),
            (greatest("recommended_replica_concurrency"), "{{backend}} cap per replica"),
        ),
    ),
    Shown(
        "Recommendation state",
        "Where the cap comes from: fallback, calibrated, guarded, stale or overridden.",
        "short",
        ((greatest("recommendation_state", "state") + " == 1", "{{backend}} {{state}}"),),
        is_timeline=True,
    ),
    Shown(
        "Measurement health",
        "Whether the engine responds (1), and the health of measuring it. An error never removes a valid cap.",
        "short",
        (
            (greatest("backend_health", "health") + " == 1", "{{backend}} {{health}}"),
            (greatest("backend_up"), "{{backend}} responds"),
        ),
        is_timeline=True,
    ),
    Shown(
        "Who measures",
        "1 for the instance that holds the lease of the backend; 1 while its database works.",
        "short",
        (
            (greatest("lease_held", "instance"), "{{backend}} {{instance}}"),
            (f"min by (instance) (calibrator_store_up{{{OURS}}})", "{{instance}} database"),
        ),
        is_timeline=True,
    ),
    Shown(
        "Sweep outcomes",
        "Completed sweeps by outcome. After several in a row without a result, the cap becomes stale.",
        "short",
        ((grown("sweeps_total", "outcome", function="increase"), "{{backend}} {{outcome}}"),),
    ),
    Shown(
        "Time since the last sweep",
        "Time since a sweep ended, by outcome.",
        "s",
        ((f"time() - {greatest('last_sweep_timestamp_seconds', 'outcome')}", "{{backend}} {{outcome}}"),),
    ),
    Shown(
        "Guard",
        "Guard alarms by signal; 1 while live users miss the SLA well below the cap.",
        "short",
        (
            (grown("guard_trips_total", "reason", function="increase"), "{{backend}} {{reason}}"),
            (greatest("guard_breach"), "{{backend}} breach not caused by concurrency"),
        ),
    ),
    Shown(
        "Deferred and aborted sweeps",
        "1 for the reason why a due sweep is deferred, and sweeps aborted to protect live users.",
        "short",
        (
            (greatest("sweep_deferred", "reason"), "{{backend}} deferred: {{reason}}"),
            (grown("sweep_aborts_total", "reason", function="increase"), "{{backend}} aborted: {{reason}}"),
        ),
    ),
    Shown(
        "Probe cost: requests",
        "Probe requests by outcome: what measuring costs the engine.",
        "reqps",
        ((grown("probe_requests_total", "outcome"), "{{backend}} {{outcome}}"),),
    ),
    Shown(
        "Probe cost: tokens",
        "Prompt and output tokens of probes.",
        "suffix: tokens/s",
        ((grown("probe_tokens_total", "kind"), "{{backend}} {{kind}}"),),
    ),
    Shown(
        "Probe cost: overload",
        "Seconds for which probes pushed the backend over its SLA, and live requests over the SLA during sweeps.",
        "short",
        (
            (grown("probe_overload_seconds_total", function="increase"), "{{backend}} overload seconds"),
            (grown("live_exceedances_total", function="increase"), "{{backend}} live requests over the SLA"),
        ),
    ),
    Shown(
        "Generator: inconclusive levels",
        "Levels of the last sweep that are inconclusive because the generator was late. Above 0, add CPU.",
        "short",
        ((greatest("inconclusive_levels", matchers=', cause="generator"'), "{{backend}}"),),
    ),
    Shown(
        "Generator: event-loop lag",
        "P99 event-loop lag of the load generator during the last sweep.",
        "s",
        ((f"max by (instance) (calibrator_generator_lag_seconds{{{OURS}}})", "{{instance}}"),),
    ),
    Shown(
        "Generator: speed of this machine",
        "Token events per second that this machine can measure, from the self-test at startup.",
        "suffix: events/s",
        ((f"max by (instance) (calibrator_generator_events_per_second{{{OURS}}})", "{{instance}}"),),
    ),
    Shown(
        "Pollers",
        "Gateways that share the cap, and those in excess of it: each still gets 1, so the sum exceeds the cap.",
        "short",
        (
            (greatest("gateway_clients"), "{{backend}} gateways"),
            (greatest("gateway_clients_over_cap"), "{{backend}} in excess of the cap"),
        ),
    ),
    Shown(
        "Polls",
        "Polls of the cap. Without any, gateways run on their last cap or static limit.",
        "reqps",
        ((grown("gateway_polls_total"), "{{backend}}"),),
    ),
)


def with_base(panel: AnyPanel, shown: Shown) -> AnyPanel:
    panel.title(shown.title).description(shown.description).unit(shown.unit).datasource(SOURCE)
    return panel.span(WIDTH).height(HEIGHT)


def over_time(shown: Shown) -> timeseries.Panel | statetimeline.Panel:
    panel = with_base(statetimeline.Panel(), shown) if shown.is_timeline else with_base(timeseries.Panel(), shown)
    for ref_id, (expression, legend) in zip("ABCDEFGH", shown.queries, strict=False):
        query = prometheus.Dataquery().expr(expression).legend_format(legend).ref_id(ref_id).range()
        panel.with_target(query.datasource(SOURCE))
    return panel


def curve() -> trend.Panel:
    """Latency by concurrency: tables of (concurrency, value), joined into one and drawn over concurrency."""
    shown = Shown(
        "Latency against concurrency",
        "Curve of the last sweep for the backend and metric selected above. The capacity is where P99 meets the SLA.",
        "s",
        (),
    )
    panel = with_base(trend.Panel(), shown).x_field("concurrency").span(2 * WIDTH)
    of_metric = ', metric=~"$metric"'
    points = f"calibrator_curve_latency_seconds{{{BACKEND}{of_metric}"
    limit = f"scalar(min(calibrator_objective_limit_seconds{{{BACKEND}{of_metric}}}))"
    lines = [(f"P{p}", f'max by (concurrency) ({points}, percentile="{p}"}})') for p in (50, 90, 99)]
    lines.append(("SLA", f"max by (concurrency) ({points}}}) * 0 + {limit}"))
    renamed: dict[str, str] = {}
    for ref_id, (name, expression) in zip("ABCD", lines, strict=True):
        query = prometheus.Dataquery().expr(expression).ref_id(ref_id).instant().format(PromQueryFormat.TABLE)
        panel.with_target(query.datasource(SOURCE))
        renamed[f"Value #{ref_id}"] = name
    hidden = {f"Time {number}": True for number in range(1, len(lines) + 1)}
    number = {"conversions": [{"targetField": "concurrency", "destinationType": "number"}], "fields": {}}
    for name, options in (
        ("joinByField", {"byField": "concurrency", "mode": "outer"}),
        ("organize", {"excludeByName": {"Time": True, **hidden}, "indexByName": {}, "renameByName": renamed}),
        ("convertFieldType", number),
        ("sortBy", {"fields": {}, "sort": [{"field": "concurrency"}]}),
    ):
        panel.with_transformation(DataTransformerConfig(id_val=name, options=options))
    return panel


def variable(name: str, label: str, series: str, *, has_all: bool = True) -> build.QueryVariable:
    query = build.QueryVariable(name).label(label).query(f"label_values({series}, {name})").datasource(SOURCE)
    query.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED).sort(VariableSort.ALPHABETICAL_ASC)
    if has_all:
        current = VariableOption(selected=True, text="All", value="$__all")
        query.multi(multi=True).include_all(include_all=True).all_value(".+").current(current)
    return query


def dashboard() -> Dashboard:
    board = build.Dashboard("Calibrator").uid("calibrator").tags(["calibrator", "llm"]).readonly()
    board.description("How many requests each LLM backend may have in flight, how much of that is unused, and why.")
    board.time("now-24h", "now").refresh("1m").timezone("browser").tooltip(DashboardCursorSync.CROSSHAIR)
    board.with_variable(build.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    board.with_variable(variable("job", "Job", "calibrator_build_info"))
    board.with_variable(variable("instance", "Instance", 'calibrator_build_info{job=~"$job"}'))
    board.with_variable(variable("backend", "Backend", f"calibrator_recommended_concurrency{{{OURS}}}"))
    metrics = f"calibrator_objective_limit_seconds{{{BACKEND}}}"
    board.with_variable(variable("metric", "Metric of the curve", metrics, has_all=False))
    sweeps = build.AnnotationQuery().name("Sweeps").datasource(SOURCE).enable(enable=True).icon_color("blue")
    board.annotation(sweeps.expr(greatest("sweep_active") + " == 1"))
    first, second, *others = PANELS
    panels = (over_time(first), over_time(second), curve(), *map(over_time, others))
    for number, panel in enumerate(panels, start=1):
        board.with_panel(panel.id(number))
    return board.build()


def asked(ref_id: str, source_uid: str, model: dict[str, Any]) -> dict[str, Any]:
    """Instant queries ignore the range, but Grafana requires one."""
    window = {"from": 600, "to": 0}
    return {
        "refId": ref_id,
        "relativeTimeRange": window,
        "datasourceUid": source_uid,
        "model": {"refId": ref_id, **model},
    }


def alert(rule: dict[str, Any]) -> dict[str, Any]:
    """A rule in Grafana's form: every series that the expression returns is an alert, as in Prometheus."""
    instant = {"expr": " ".join(rule["expr"].split()), "instant": True, "range": False}
    math = {"type": "math", "expression": "is_number($A)"}
    words = {key: text.replace("$value", "$values.A.Value") for key, text in rule["annotations"].items()}
    return {
        "uid": re.sub(r"(?<!^)(?=[A-Z])", "-", rule["alert"]).lower(),
        "title": rule["alert"],
        "condition": "B",
        "data": [
            asked("A", GRAFANA_DATASOURCE_UID, instant),
            asked("B", "__expr__", math),
        ],
        "noDataState": "OK",
        "execErrState": "Error",
        "for": rule["for"],
        "labels": rule["labels"],
        "annotations": words,
    }


def alerts() -> dict[str, Any]:
    """A file for Grafana's provisioning folder."""
    rules = [
        rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"] if "alert" in rule
    ]
    group = {"orgId": 1, "name": "calibrator", "folder": "Calibrator", "interval": "1m", "rules": [*map(alert, rules)]}
    return {"apiVersion": 1, "groups": [group]}


def files() -> dict[str, str]:
    """{name: content}"""
    head = "# Generated from ../prometheus/rules.yaml by generate.py; the recording rules must run in Prometheus.\n"
    return {
        "dashboard.json": json.dumps(dashboard(), cls=JSONEncoder, sort_keys=True, indent=2) + "\n",
        "alerts.yaml": head + yaml.safe_dump(alerts(), sort_keys=False, width=120),
    }


if __name__ == "__main__":
    for name, content in files().items():
        (HERE / name).write_text(content)

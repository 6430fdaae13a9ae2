"""`/metrics`, parsed back by the library's own parsers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from prometheus_client.samples import Sample
from support.virtual_time import run_virtual
from support.web_fakes import EPOCH_S, FakeOperator, app_of, calibrated, client_of, fallback, running, snapshot

from calibrator.core.publish.snapshot import BackendView, Health, Snapshot, State
from calibrator.core.records.sweep import Grade
from calibrator.web.prometheus.metrics import METRICS, PREFIX, reference_markdown

OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"


def scrape(current: Snapshot, accept: str = "") -> httpx.Response:
    async def scenario() -> httpx.Response:
        async with client_of(app_of(FakeOperator(current))) as client:
            return await client.get("/metrics", headers={"Accept": accept})

    response = run_virtual(scenario())
    assert response.status_code == 200
    return response


def samples(current: Snapshot) -> list[Sample]:
    return [sample for family in parse_text(scrape(current).text) for sample in family.samples]


def values(found: Iterable[Sample], name: str, backend: str | None = "chat") -> dict[tuple[str, ...], float]:
    """{label values besides the backend, by alphabet of the labels: value}"""
    return {
        tuple(value for key, value in sorted(sample.labels.items()) if key != "backend"): sample.value
        for sample in found
        if sample.name == PREFIX + name and sample.labels.get("backend") == backend
    }


def test_the_values_of_a_calibrated_backend() -> None:
    found = samples(snapshot(generator_lag_s=0.002, generator_events_per_s=9e4))
    single = {
        "recommended_concurrency": 37,
        "recommended_replica_concurrency": 37,
        "recommended_requests_per_second": 30,
        "recommendation_timestamp_seconds": EPOCH_S - 3700.0,
        "recommendation_valid_until_timestamp_seconds": EPOCH_S + 100.0,
        "headroom": 25,
        "ready_replicas": 1,
        "sweep_duration_seconds": 299.5,
        "sweep_active": 0,
        "probe_overload_seconds_total": 12.5,
        "backend_up": 1,
        "gateway_polls_total": 41,
    }
    assert {name: values(found, name)[()] for name in single} == single
    assert values(found, "headroom_ratio")[()] == pytest.approx(25 / 37)
    assert values(found, "recommended_tokens_per_minute") == {("prompt",): 180_000, ("output",): 90_000}
    assert values(found, "capacity") == {("estimate",): 41, ("low",): 38, ("high",): 44}
    assert values(found, "in_flight_requests") == {("organic",): 12, ("probe",): 0}
    assert values(found, "last_sweep_timestamp_seconds") == {("calibrated",): EPOCH_S - 3700.5}
    assert values(found, "probe_tokens_total") == {("prompt",): 90_000, ("output",): 45_000}
    assert values(found, "build_info", None) == {("9.9.9",): 1}
    assert values(found, "generator_lag_seconds", None) == {(): 0.002}
    assert values(found, "generator_events_per_second", None) == {(): 9e4}


def test_what_is_not_known_has_no_series() -> None:
    found = samples(snapshot(fallback()))
    names = {sample.name.removeprefix(PREFIX) for sample in found}
    assert names.isdisjoint(
        {
            "recommended_requests_per_second",
            "recommended_tokens_per_minute",
            "recommendation_valid_until_timestamp_seconds",
            "capacity",
            "headroom",
            "headroom_ratio",
            "ready_replicas",
            "curve_latency_seconds",
            "sweep_duration_seconds",
            "last_sweep_timestamp_seconds",
            "backend_up",
            "generator_lag_seconds",
            "generator_events_per_second",
        }
    )
    assert values(found, "in_flight_requests", "fresh") == {("probe",): 0}
    assert "HELP calibrator_capacity" not in scrape(snapshot(fallback())).text


@pytest.mark.parametrize(
    ("view", "state", "grade"),
    [
        (calibrated(), "calibrated", "certified"),
        (fallback("chat"), "fallback", None),
        (
            replace(calibrated(), recommendation=replace(calibrated().recommendation, valid_until=EPOCH_S - 1.0)),
            "stale",
            "certified",
        ),
    ],
)
def test_enumerations_are_one_hot_with_every_value_present(view: BackendView, state: str, grade: str | None) -> None:
    found = samples(snapshot(view))
    assert values(found, "recommendation_state") == {(value,): float(value == state) for value in State}
    assert values(found, "recommendation_grade") == {(value,): float(value == grade) for value in Grade}
    assert values(found, "backend_health") == {(value,): float(value is Health.OK) for value in Health}


def test_counters_start_with_every_outcome() -> None:
    found = samples(snapshot())
    assert values(found, "sweeps_total") == {
        ("calibrated",): 3, ("inconclusive",): 0, ("infeasible",): 0,
        ("error",): 0, ("interrupted",): 0, ("cancelled",): 0,
    }  # fmt: skip
    assert values(found, "probe_requests_total") == {
        ("ok",): 900, ("violation",): 7, ("failed",): 0, ("cancelled",): 0, ("invalid",): 0, ("unmeasured",): 0,
    }  # fmt: skip


def test_the_curve_is_that_of_the_last_sweep_and_has_no_point_that_n_cannot_support() -> None:
    curve = values(samples(snapshot()), "curve_latency_seconds")
    assert curve["32", "ttft", "50"] == 0.1
    assert curve["44", "tpot", "90"] == 0.024
    assert len(curve) == 5 * 2 * 2  # metrics, quantiles (no P99), levels
    assert {percentile for _, _, percentile in curve} == {"50", "90"}


def test_a_running_sweep_says_so() -> None:
    assert values(samples(snapshot(calibrated(progress=running()))), "sweep_active") == {(): 1}


def test_every_exported_family_is_in_the_table_with_its_type_labels_and_help() -> None:
    """And every row of the table is exported by a snapshot that knows everything."""
    families = list(parse_text(scrape(snapshot(generator_lag_s=0.0, generator_events_per_s=9e4)).text))
    seen = {
        (
            family.samples[0].name.removeprefix(PREFIX),
            family.type,
            frozenset(family.samples[0].labels),
            family.documentation,
        )
        for family in families
    }
    assert seen == {(metric.name, metric.kind, frozenset(metric.labels), metric.help) for metric in METRICS}


def test_the_table_keeps_the_conventions_of_prometheus() -> None:
    for metric in METRICS:
        assert (metric.kind == "counter") == metric.name.endswith("_total"), metric.name
        assert not {"job", "instance", "cluster", "env", "type"} & set(metric.labels), metric.name
        assert metric.help.endswith("."), metric.name


def test_both_formats_say_the_same() -> None:
    response = scrape(snapshot(), OPENMETRICS)
    assert response.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert response.text.endswith("# EOF\n")
    assert scrape(snapshot()).headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    one = {(s.name, *sorted(s.labels.items())): s.value for f in parse_openmetrics(response.text) for s in f.samples}
    two = {(s.name, *sorted(s.labels.items())): s.value for s in samples(snapshot())}
    assert one == two
    assert all(math.isfinite(value) for value in one.values())


def test_a_hostile_name_is_escaped_and_comes_back_unchanged() -> None:
    name = 'a"b\\c\n} 1 #'
    assert values(samples(snapshot(calibrated(name))), "recommended_concurrency", name) == {(): 37}


def test_the_reference_names_every_metric() -> None:
    lines = reference_markdown().splitlines()
    assert len(lines) == len(METRICS) + 2
    assert any(line.startswith("| `calibrator_capacity` | gauge | `backend`, `bound` | ") for line in lines)


def test_before_the_state_is_loaded_a_scrape_succeeds() -> None:
    empty = replace(snapshot(), backends={}, ready=False)
    process = ("store_up", "asyncio_tasks", "build_info")
    assert {sample.name for sample in samples(empty)} == {f"calibrator_{name}" for name in process}

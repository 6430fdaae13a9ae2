"""How much a scrape may carry: the bound, and that promtool finds nothing to improve.

**Cardinality.** Series of one backend, at most, with L levels in its last sweep and O objectives:

    one each:   one for every metric without further labels
    words:      state 5, grade 4, health 3, outcomes 6 + 6 + 5, token kinds 2 + 2, bounds 3, in-flight kinds 2,
                guard reasons 4, abort reasons, reasons to hold back
    objectives: O
    curve:      5 metrics x 3 quantiles x L; it vanishes with the next sweep

A sweep of the default budget stages some 10 to 20 levels: below 400 series per backend.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from support.full_views import fleet, full
from support.prometheus_process import REPOSITORY, accepted
from support.quiet_machine import real_time
from support.virtual_time import run_virtual
from support.web_fakes import level, snapshot

from calibrator.clock import LoopClock, SystemClock
from calibrator.core.admission.admission import DeferralReason
from calibrator.core.live.change_test import GuardReason
from calibrator.core.publish.snapshot import Health, Snapshot, State
from calibrator.core.records.harm import AbortReason
from calibrator.core.records.history import Audit
from calibrator.core.records.objective import parse_objective
from calibrator.core.records.sample import RequestOutcome
from calibrator.core.records.sweep import Grade, ObjectiveVerdict, SweepOutcome, Verdict, VerdictKind
from calibrator.core.records.unmeasured import Missing
from calibrator.core.report.formats import LATENCIES, QUANTILES
from calibrator.web.prometheus.metrics import METRICS, MetricsPage

PROCESS_SERIES = 5  # without the label `backend`
WORDS = {
    "state": State, "grade": Grade, "health": Health, "kind": range(2), "bound": range(3), "cause": range(2),
}  # fmt: skip
OUTCOMES = {
    "sweeps_total": SweepOutcome, "last_sweep_timestamp_seconds": SweepOutcome, "probe_requests_total": RequestOutcome
}  # fmt: skip
REASONS = {"guard_trips_total": GuardReason, "sweep_aborts_total": AbortReason, "sweep_deferred": DeferralReason}


def page(current: Snapshot) -> str:
    async def exposed() -> str:
        return MetricsPage(lambda: current, LoopClock(), "1").text()

    return run_virtual(exposed())


def series(text: str) -> int:
    return sum(not line.startswith("#") for line in text.splitlines())


def bound(objectives: int, levels: int) -> int:
    """Series of one backend, from the table of metrics and the enumerations behind its labels."""
    total = 0
    for metric in METRICS:
        if "backend" not in metric.labels:
            continue
        match metric.labels[1:]:
            case ():
                total += 1
            case ("outcome",):
                total += len(OUTCOMES[metric.name])
            case ("reason",):
                total += len(REASONS[metric.name])
            case ("metric", "percentile", "concurrency"):
                total += len(LATENCIES) * len(QUANTILES) * levels
            case ("metric", "percentile", "max_prompt_tokens"):
                total += objectives
            case (word,):
                total += len(WORDS[word])  # type: ignore[arg-type]  # enumerations have a length
            case other:
                pytest.fail(f"{metric.name}: what bounds {other}?")
    return total


def test_the_page_is_clean_for_promtool() -> None:
    accepted("check", "metrics", stdin=page(snapshot(full("chat"), generator_lag_s=0.0, generator_events_per_s=9e4)))


@pytest.mark.parametrize("backends", [1, 3])
def test_cardinality_is_what_the_bound_says(backends: int) -> None:
    current = snapshot(
        *(full(f"b{number}") for number in range(backends)), generator_lag_s=0.0, generator_events_per_s=9e4
    )
    assert series(page(current)) == PROCESS_SERIES + backends * bound(1, 20)
    assert bound(1, 20) < 400


def test_the_documentation_states_the_bound() -> None:
    page = (REPOSITORY / "deploy" / "docs" / "metrics.md").read_text()
    assert f"{bound(1, 0)} per backend" in page
    assert f"{len(LATENCIES) * len(QUANTILES)} for each level" in page
    assert f"{PROCESS_SERIES} per process" in page


def test_a_scrape_changes_nothing_and_none_is_needed() -> None:
    """However often, however long not: a Prometheus that was away for a day finds the page that it would have found."""
    current = fleet(2, 3)
    watched, unwatched = fresh(current), fresh(current)
    pages = {watched.text() for _ in range(5)}
    assert pages == {unwatched.text()}
    assert current == fleet(2, 3)


def test_the_curve_of_the_last_sweep_is_gone_with_the_next() -> None:
    long, short = series(page(snapshot(full("chat", 30)))), series(page(snapshot(full("chat", 2))))
    assert long - short == 28 * len(LATENCIES) * len(QUANTILES)


def test_limits_and_inconclusive_levels() -> None:
    late = replace(level(8), audit=Audit(reasons=("generator saturated: late",)))
    texts = ("ttft p99 <= 500ms", "ttft p99 <= 400ms", "tpot p90 <= 30ms for prompts <= 64 tokens")
    view = full("chat", objectives=tuple(map(parse_objective, texts)))
    assert view.last_sweep is not None
    text = page(snapshot(replace(view, last_sweep=replace(view.last_sweep, levels=(level(4), late)))))
    limit = 'calibrator_objective_limit_seconds{backend="chat",'
    assert limit + 'metric="ttft",percentile="99",max_prompt_tokens=""} 0.4' in text, "the stricter of two, once"
    assert text.count(limit) == 2
    assert limit + 'metric="tpot",percentile="90",max_prompt_tokens="64"} 0.03' in text
    assert 'calibrator_inconclusive_levels{backend="chat",cause="generator"} 1.0' in text
    assert 'calibrator_inconclusive_levels{backend="chat",cause="unmeasured"} 0.0' in text


def test_a_level_whose_answers_do_not_show_an_objective_is_counted() -> None:
    missing = ((Missing.NO_USAGE, 24),)
    kind = VerdictKind.INCONCLUSIVE
    unmeasured = Verdict(kind, (), (ObjectiveVerdict("tpot p90 <= 30ms", kind, 0, 0.0, 0, 0.0, 1.0, "", missing),))
    view = full("chat")
    assert view.last_sweep is not None
    levels = (level(4), replace(level(8), verdict=unmeasured))
    text = page(snapshot(replace(view, last_sweep=replace(view.last_sweep, levels=levels))))
    assert 'calibrator_inconclusive_levels{backend="chat",cause="unmeasured"} 1.0' in text


def cost_s(step: Callable[[], object]) -> float:
    """CPU time of the cheapest of three: what it costs undisturbed."""
    taken_s = []
    for _ in range(3):
        started_s = time.process_time()
        step()
        taken_s.append(time.process_time() - started_s)
    return min(taken_s)


def fresh(current: Snapshot) -> MetricsPage:
    return MetricsPage(lambda: current, SystemClock(), "1")


@real_time
def test_the_cost_of_a_scrape_grows_with_the_backends_and_no_faster() -> None:
    few, many = fleet(10, 10), fleet(100, 10)
    few_s, many_s = cost_s(lambda: fresh(few).text()), cost_s(lambda: fresh(many).text())
    assert many_s < 40.0 * few_s, (few_s, many_s)


@real_time
def test_curves_cost_only_the_scrape_after_their_sweep() -> None:
    """They are three quarters of the page."""
    current, without = fleet(50, 20), fleet(50, 0)
    known = fresh(current)
    first_s = cost_s(lambda: fresh(current).text())
    again_s, bare_s = cost_s(known.text), cost_s(fresh(without).text)
    assert known.text() == fresh(current).text()
    assert again_s < 2.5 * bare_s, (again_s, bare_s)
    assert again_s < 0.6 * first_s, (again_s, first_s)


def test_a_new_sweep_of_one_backend_replaces_its_curve_alone() -> None:
    views = [full("a", 3), full("b", 3)]
    shown = [snapshot(*views)]
    known = MetricsPage(lambda: shown[0], SystemClock(), "1")
    before = known.text()
    shown[0] = snapshot(views[0], full("b", 2))
    assert known.text() == fresh(shown[0]).text() != before


@real_time
def test_writing_the_page_costs_a_fraction_of_what_the_library_takes() -> None:
    """Which is why it is written by hand."""
    current = fleet(50, 10)
    families = list(text_string_to_metric_families(fresh(current).text()))
    own = CollectorRegistry(auto_describe=False)
    own.register(Kept(families))
    ours_s, library_s = cost_s(lambda: fresh(current).text()), cost_s(lambda: generate_latest(own))
    assert ours_s < 0.6 * library_s, (ours_s, library_s)


class Kept(Collector):
    """Families that somebody else made: only their encoding is to be paid for."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


@pytest.mark.parametrize("text", ["e2e p90 <= 1d", "tpot p99.9 <= 12.5ms", "ttft p50 <= 90s", "itl p99 <= 250us"])
def test_every_objective_that_can_be_configured_has_its_limit(text: str) -> None:
    """A limit that the scrape could not read back would cost all metrics."""
    objective = parse_objective(text)
    found = page(snapshot(full("chat", objectives=(objective,))))
    (line,) = (line for line in found.splitlines() if line.startswith("calibrator_objective_limit_seconds{"))
    assert float(line.rpartition(" ")[2]) == pytest.approx(objective.limit_s)

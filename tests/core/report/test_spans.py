"""A sweep's record as a trace, and what its probes tell of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.records import sweep

from calibrator.core.records.history import Audit, History, Stage
from calibrator.core.records.sweep import SweepOutcome, SweepRecord
from calibrator.core.report.spans import ProbeTrace, SweepTrace, span_id, sweep_trace, trace_id
from calibrator.core.search.burst import FIRST_BURST_STAGE


def record(*stages: Stage, **changes: object) -> SweepRecord:
    whole = sweep()
    history = replace(whole.history, stages=stages or whole.history.stages)
    return replace(whole, history=history, duration_s=58.0, **changes)  # type: ignore[arg-type]  # any field


def stage(level: int, number: int, started_at_s: float, ended_at_s: float, **changes: object) -> Stage:
    (known,) = sweep().history.stages
    return replace(  # type: ignore[arg-type]  # any field
        known, level=level, number=number, started_at_s=started_at_s, ended_at_s=ended_at_s, **changes
    )


def names(trace: SweepTrace) -> list[str]:
    return [child.name for child in trace.children]


def test_levels_lie_inside_the_sweep_at_the_times_of_their_visits() -> None:
    trace = sweep_trace(record(stage(4, 1, 0.5, 10.0), stage(8, 2, 10.0, 57.0)), ended_at=0.0)
    preflight, first, second, burst = trace.children
    assert names(trace) == ["preflight", "level", "level", "burst"]
    assert (trace.root.started_at, trace.root.ended_at) == (100.0, 160.0)
    assert (preflight.started_at, preflight.ended_at) == (100.0, 102.0), "the first look took 2 of 60 s"
    assert (first.started_at, first.ended_at) == (102.5, 112.0)
    assert (second.started_at, second.ended_at) == (112.0, 159.0)
    assert (burst.started_at, burst.ended_at) == (159.0, 160.0)
    assert [child.attributes.get("calibrator.concurrency") for child in trace.children] == [None, 4, 8, 36]


def test_visits_in_a_row_that_share_a_label_are_one_span_and_a_return_is_another() -> None:
    stages = (stage(4, 1, 0, 5), stage(4, 1, 5, 9, requests=7), stage(8, 2, 9, 20), stage(4, 3, 20, 30))
    spans = [child for child in sweep_trace(record(*stages), 0.0).children if child.name == "level"]
    assert [span.attributes["calibrator.concurrency"] for span in spans] == [4, 8, 4]
    assert [span.span_id for span in spans] == [span_id("s1", number) for number in (1, 2, 3)]
    assert spans[0].ended_at - spans[0].started_at == pytest.approx(9.0)
    assert spans[0].attributes["calibrator.requests"] == 60 + 7


def test_the_root_says_what_came_out() -> None:
    root = sweep_trace(record(), 0.0).root
    assert root.name == "sweep"
    assert root.error == ""
    wanted = {
        "calibrator.sweep_id": "s1",
        "calibrator.backend": "chat",
        "calibrator.outcome": "calibrated",
        "calibrator.grade": "certified",
        "calibrator.capacity.estimate": 36,
        "calibrator.requests": 1500,
    }
    assert wanted.items() <= root.attributes.items()


def test_what_is_not_known_is_left_out() -> None:
    bare = record(burst=None, capacity=None, grade=None, outcome=SweepOutcome.ERROR, reason="Gone.", remedy="Look.")
    trace = sweep_trace(replace(bare, history=History(bare.history.objectives), ended_at=None), ended_at=101.0)
    assert names(trace) == ["preflight"]
    assert trace.root.error == "Gone. Look."
    assert not any(key.startswith(("calibrator.capacity", "calibrator.grade")) for key in trace.root.attributes)
    assert (trace.root.started_at, trace.root.ended_at) == (100.0, 101.0)
    assert all(value is not None for span in (trace.root, *trace.children) for value in span.attributes.values())


def test_an_invalid_level_says_why() -> None:
    invalid_reasons = stage(4, 1, 0, 5, audit=Audit(reasons=("generator saturated",)), level_lost="users came")
    (level,) = [child for child in sweep_trace(record(invalid_reasons), 0.0).children if child.name == "level"]
    assert level.attributes["calibrator.invalid_reasons"] == ("generator saturated", "users came")


@pytest.mark.parametrize("duration_s", [0.0, 1.0, 59.9, 1e6])
def test_spans_stay_within_the_sweep_whatever_a_cut_off_record_says(duration_s: float) -> None:
    cut = replace(record(stage(4, 1, 0, 5), stage(8, 2, 5, 50)), duration_s=duration_s)
    trace = sweep_trace(cut, 0.0)
    for child in trace.children:
        assert trace.root.started_at <= child.started_at <= child.ended_at <= trace.root.ended_at


# --------------------------------------------------------------------------------------------------------------- ids
def test_ids_are_those_of_the_sweep_and_never_zero() -> None:
    assert trace_id("a") == trace_id("a") != trace_id("b")
    ids = {span_id("a", number) for number in range(1000)}
    assert len(ids) == 1000
    assert all(0 < one < 2**64 for one in ids)
    assert 0 < trace_id("a") < 2**128


def test_a_probe_names_the_trace_of_its_sweep_and_the_span_of_its_level() -> None:
    version, trace, parent, flags = ProbeTrace("s1").traceparent(17, stage=2).split("-")
    assert (version, flags) == ("00", "00")
    assert trace == f"{trace_id('s1'):032x}"
    (level,) = [child for child in sweep_trace(record(stage(8, 2, 0, 5)), 0.0).children if child.name == "level"]
    assert parent == f"{level.span_id:016x}"


def test_probes_outside_levels_belong_to_the_sweep_and_those_of_bursts_to_the_burst() -> None:
    trace = sweep_trace(record(), 0.0)
    parent = {number: ProbeTrace("s1").traceparent(0, number).split("-")[2] for number in (0, FIRST_BURST_STAGE + 3)}
    assert parent[0] == f"{trace.root.span_id:016x}"
    assert parent[FIRST_BURST_STAGE + 3] == f"{trace.children[-1].span_id:016x}"
    assert trace.children[-1].name == "burst"


@pytest.mark.parametrize(("ratio", "sampled"), [(0.0, 0), (0.1, 100), (0.25, 250), (1.0, 1000)])
def test_as_many_probes_are_sampled_as_wanted_evenly_spread(ratio: float, sampled: int) -> None:
    flags = [ProbeTrace("s1", ratio).traceparent(number, 1)[-2:] for number in range(1000)]
    assert flags.count("01") == sampled
    assert flags[:100].count("01") == sampled // 10

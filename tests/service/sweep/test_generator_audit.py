"""What the generator's own error spoils, and what it does not."""

from __future__ import annotations

from typing import Any

import pytest

from calibrator.core.records.objective import parse_objective
from calibrator.core.records.sample import Failure, FailureKind, Label, Phase, Sample
from calibrator.ports.load import Batch, Decided
from calibrator.service.sweep.generator_audit import GeneratorAudit

OBJECTIVES = (parse_objective("ttft p99 <= 200ms"), parse_objective("e2e p99 <= 5s"))
LEVEL = 10


def sample(*, failed: bool = False) -> Sample:
    failure = Failure(FailureKind.STATUS, "busy", 503) if failed else None
    return Sample(1, Label(1, Phase.COUNTED), "c", True, 10, 0.0, 1.0, 0.1, failure=failure)


def bits(passes: int, violations: int, suspect: int = 0, objective: int = 0) -> list[Decided]:
    """`suspect` of the violations."""
    return [
        Decided(index, objective, index >= passes, 0.0, suspect=passes <= index < passes + suspect)
        for index in range(passes + violations)
    ]


def reasons(residence_s: float = 1.0, polls: int = 20, **batch: Any) -> str:
    """Of a stage in which each poll brought the same gauges, and the first one the events."""
    watch = GeneratorAudit()
    gauges = {"in_flight": LEVEL, "lag_probe_s": 0.01, "loop_lag_s": [0.0] * 5, **batch}
    watch.add(Batch(**gauges), counted=True)
    events = {"decided": (), "ended": ()}
    for _ in range(polls - 1):
        watch.add(Batch(**{**gauges, **events, "broken": ""}), counted=True)
    return "; ".join(watch.audit(LEVEL, OBJECTIVES, residence_s).reasons)


@pytest.mark.parametrize(
    ("decided", "invalid_reasons"),
    [
        (bits(100, 10, suspect=10), True),  # all of them may be ours
        (bits(100, 10, suspect=3), True),  # too many
        (bits(100, 10, suspect=2), False),  # the other eight decide as well
        (bits(100, 1, suspect=1), False),  # one violation never decides
        (bits(1000, 3, suspect=3), False),  # three of a thousand are within, whoever made them
        (bits(100, 10, suspect=10, objective=1), True),  # any objective
        (bits(10, 10, suspect=6), True),  # the other four are a fifth of all: not gross by themselves
        (bits(6, 10, suspect=6), False),  # the other four are a quarter of all: gross, whoever made the six
        (bits(0, 40, suspect=20), False),
        (bits(0, 6, suspect=3), True),  # too few to call it gross
        (bits(100, 0), False),
    ],
)
def test_violations_that_may_be_ours_spoil_the_level_when_they_matter(
    *, decided: list[Decided], invalid_reasons: bool
) -> None:
    assert ("its own lateness" in reasons(decided=decided)) is invalid_reasons


def test_the_last_word_about_a_violation_counts() -> None:
    early = [Decided(index, 0, violated=True, at_s=0.0, suspect=True) for index in range(5)]
    settled = [Decided(index, 0, violated=True, at_s=0.0, suspect=False) for index in range(5)]
    assert reasons(decided=early + settled) == ""
    assert "5 of 5 violations" in reasons(decided=settled + early)


@pytest.mark.parametrize(
    ("decided", "spoilt"),
    [
        (bits(100, 0), False),
        (bits(100, 10, suspect=2), True),
        (bits(100, 10), False),
        (bits(0, 40, suspect=2), False),
    ],
)
def test_a_saturated_core_spoils_violations_that_may_be_ours(*, decided: list[Decided], spoilt: bool) -> None:
    assert ("of a core" in reasons(decided=decided, cpu_ratio=0.97)) is spoilt
    assert reasons(decided=decided, cpu_ratio=0.6) == ""


def test_a_level_that_was_not_held_is_not_judged() -> None:
    assert "held 8.0 of 10" in reasons(in_flight=8)
    assert reasons(in_flight=9) == ""
    assert reasons(in_flight=2, polls=5) == "", "too short to tell"


def test_what_a_late_loop_did_not_see_end_was_not_in_flight() -> None:
    """Late by 0.4 s at every probe: ends are seen 0.2 s late on average, a fifth of the residence."""
    assert "held 8.0 of 10" in reasons(loop_lag_s=[0.4] * 5, lag_probe_s=0.0)
    assert reasons(loop_lag_s=[0.4] * 5, lag_probe_s=0.0, residence_s=10.0) == ""


def test_a_refusing_backend_keeps_the_level_down_itself() -> None:
    assert reasons(in_flight=2, ended=[sample(failed=True)] * 2 + [sample()] * 8) == ""


def test_a_death_voids_the_visit() -> None:
    assert reasons(broken="a worker died") == "generator broken: a worker died"

"""A stamp is as good as the process was punctual, and a violation is suspect if our lateness can explain it."""

from __future__ import annotations

import pytest

from calibrator.core.records.objective import parse_objective
from calibrator.core.records.sample import Failure, FailureKind, Label, Phase, Sample
from calibrator.load.lateness import KEEP_SPELLS, PROBE_S, Lateness

TTFT, E2E = parse_objective("ttft p99 <= 100ms"), parse_objective("e2e p99 <= 1s")
ITL, TPOT = parse_objective("itl p99 <= 50ms"), parse_objective("tpot p99 <= 50ms")


def frozen(from_s: float, to_s: float, until_s: float) -> Lateness:
    """Punctual, but for one freeze."""
    late = Lateness(0.0)
    now_s = 0.0
    while now_s < until_s:
        now_s = to_s if from_s <= now_s < to_s else now_s + PROBE_S
        late.awake(now_s)
    return late


def ended(**fields: float) -> Sample:
    known: dict[str, object] = {"started_s": 1.0, "duration_s": 2.0, "ttft_s": 0.05, "last_token_s": 2.0, **fields}
    return Sample(1, Label(1, Phase.COUNTED), "c", True, 10, **known)  # type: ignore[arg-type] # a table of numbers


def test_a_punctual_process_makes_no_error() -> None:
    late = frozen(0.0, 0.0, 1.0)
    assert late.error_s(0.0, 1.0, 1.0) == 0.0


def test_stamps_inside_a_freeze_may_be_wrong_by_all_of_it_and_others_are_not() -> None:
    late = frozen(1.0, 1.2, 3.0)
    assert late.error_s(1.2, 1.2, 3.0) == pytest.approx(0.2, abs=PROBE_S)
    assert late.error_s(0.5, 0.9, 3.0) == 0.0
    assert late.error_s(1.3, 2.9, 3.0) == 0.0
    assert late.error_s(0.5, 2.9, 3.0) == pytest.approx(0.2, abs=PROBE_S)


def test_a_freeze_that_the_probe_has_not_reported_yet_counts() -> None:
    late = frozen(0.0, 0.0, 1.0)
    assert late.error_s(1.3, 1.3, 1.3) == pytest.approx(0.3, abs=PROBE_S)


@pytest.mark.parametrize(
    ("ttft_s", "suspect"),
    [(0.25, True),  # stamped at 1.25 in a freeze of 0.2 s, excess 0.15 s
     (0.35, False)],  # stamped after it
)  # fmt: skip
def test_a_violation_in_a_freeze_is_doubtful(*, ttft_s: float, suspect: bool) -> None:
    late = frozen(1.1, 1.3, 4.0)
    assert late.doubts(TTFT, ended(ttft_s=ttft_s), 4.0) is suspect


def test_a_violation_larger_than_the_freeze_is_the_backend_s() -> None:
    late = frozen(2.0, 2.2, 4.0)
    assert not late.doubts(TTFT, ended(ttft_s=1.2), 4.0), "1.1 s too late, of which at most 0.2 s are ours"


@pytest.mark.parametrize(("ttft_s", "suspect"), [(0.19, True), (0.25, False), (1.2, False)])
def test_a_bunch_explains_as_much_as_it_was_late(*, ttft_s: float, suspect: bool) -> None:
    """Sent in a freeze of 0.1 s with all that was due then: the backend had the same work at most 0.1 s later."""
    assert frozen(0.9, 1.0, 4.0).doubts(TTFT, ended(ttft_s=ttft_s), 4.0) is suspect


@pytest.mark.parametrize(("ttft_s", "suspect"), [(0.45, True), (0.55, False)])
def test_sending_and_stamping_late_add_up(*, ttft_s: float, suspect: bool) -> None:
    late, now_s = Lateness(0.9), 0.9
    while now_s < 2.0:  # woken every 0.2 s only
        now_s += 0.2
        late.awake(now_s)
    assert late.doubts(TTFT, ended(ttft_s=ttft_s), 2.0) is suspect


@pytest.mark.parametrize(("send_delay_s", "suspect"), [(0.04, False), (0.06, True)])
def test_a_request_that_left_late_may_have_left_in_a_bunch(*, send_delay_s: float, suspect: bool) -> None:
    late = frozen(0.0, 0.0, 4.0)
    assert late.doubts(TTFT, ended(ttft_s=0.15, send_delay_s=send_delay_s), 4.0) is suspect


@pytest.mark.parametrize(("duration_s", "suspect"), [(0.2, True), (0.5, False)])
def test_a_request_that_was_cancelled_over_its_limit_is_judged_by_how_long_it_waited(
    *, duration_s: float, suspect: bool
) -> None:
    gone = Sample(1, Label(1, Phase.COUNTED), "c", True, 10, 1.0, duration_s, cancelled=True)
    assert frozen(1.1, 1.3, 4.0).doubts(TTFT, gone, 4.0) is suspect


def test_each_metric_is_doubted_where_its_stamps_were_taken() -> None:
    middle, end = frozen(2.0, 2.3, 4.0), frozen(2.9, 3.1, 4.0)
    sample = ended(duration_s=2.1, last_token_s=2.1, completion_tokens=41)  # tpot 51 ms: 50 ms in all
    gappy = Sample(1, Label(1, Phase.COUNTED), "c", True, 10, 1.0, 2.0, 0.05, None, 2.0, gaps_s=((0.99, 0.3),))
    assert [late.doubts(ITL, gappy, 4.0) for late in (middle, end)] == [True, False]
    assert [late.doubts(TPOT, sample, 4.0) for late in (middle, end)] == [False, True]
    assert [late.doubts(E2E, ended(duration_s=1.1), 4.0) for late in (frozen(2.0, 2.3, 4.0), end)] == [True, False]


def test_a_failure_is_the_backend_s_word() -> None:
    late = frozen(2.9, 3.1, 4.0)
    failed = Sample(1, Label(1, Phase.COUNTED), "c", True, 10, 1.0, 2.0, failure=Failure(FailureKind.RESET, "reset"))
    assert not late.doubts(TTFT, failed, 4.0)


def test_memory_is_bounded_and_the_latest_is_kept() -> None:
    late, now_s = Lateness(0.0), 0.0
    for _ in range(3 * KEEP_SPELLS):
        now_s += 0.1
        late.awake(now_s)
    assert len(late._to_s) <= KEEP_SPELLS
    assert late.error_s(now_s, now_s, now_s) == pytest.approx(0.1)

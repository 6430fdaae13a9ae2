"""One rule says whether an engine restarted between two scrapes, and all who compare scrapes follow it."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import pytest

from calibrator.core.live.abort import AbortRules
from calibrator.core.live.liveness import Silence
from calibrator.core.records.harm import AbortLimits, AbortReason
from calibrator.core.records.objective import parse_objective
from calibrator.core.records.server_load import COUNTERS, HISTOGRAMS, Histogram, ServerLoad, has_restarted
from calibrator.core.workload.live_mix import mix_between


def counted(total: float) -> Histogram:
    return Histogram((1.0, math.inf), (total, total))


PAGE = ServerLoad(
    "vllm", 4.0, 0.0, process_start="1",
    **dict.fromkeys(COUNTERS, 10.0), **dict.fromkeys(HISTOGRAMS, counted(10.0)),
)  # type: ignore[arg-type] # a table of fields  # fmt: skip
BARE = replace(PAGE, process_start=None)

CASES = [
    (PAGE, PAGE, False),
    (PAGE, replace(PAGE, finished_total=11.0, running_requests=0.0), False),
    (PAGE, replace(PAGE, process_start="2"), True),  # the start time changed, although no counter fell
    (PAGE, BARE, True),  # it vanished
    (BARE, PAGE, False),  # it appeared: the same process says more than before
    (PAGE, replace(PAGE, finished_total=9.0), True),  # the same start time does not excuse a counter that fell
    (BARE, BARE, False),
    (BARE, replace(BARE, finished_total=None), False),  # a counter that is missing did not fall
    *((BARE, replace(BARE, **{name: 9.0}), True) for name in COUNTERS),
    *((BARE, replace(BARE, **{name: counted(9.0)}), True) for name in HISTOGRAMS),
]


@pytest.mark.parametrize(("before", "now", "restarted"), CASES)
def test_a_restart_is_the_same_for_all(before: ServerLoad, now: ServerLoad, *, restarted: bool) -> None:
    assert has_restarted(before, now) is restarted
    assert (mix_between(before, now, 1.0) is None) is restarted
    watch = AbortRules((parse_objective("ttft p99 <= 1s"),), AbortLimits(), 120.0)
    watch.scraped(1.0, before, 1)
    abort = watch.scraped(2.0, now, 1)
    assert (abort is not None and abort.reason is AbortReason.RESTART) is restarted


def test_silence_is_that_of_one_process() -> None:
    """An engine that hangs before it has finished anything, is restarted, and has not finished anything yet either."""
    hanging = ServerLoad("vllm", 4.0, 0.0, process_start="1", finished_total=0.0)
    silence = Silence().after(hanging, 0.0).after(hanging, 50.0)
    assert silence.since_s == 0.0
    assert silence.after(replace(hanging, process_start="2"), 60.0).since_s == 60.0


def test_every_counter_and_histogram_of_a_scrape_is_compared() -> None:
    known = {*COUNTERS, *HISTOGRAMS}
    growing = {
        part.name for part in fields(ServerLoad) if part.name.endswith("_total") or "Histogram" in str(part.type)
    }
    assert known == growing

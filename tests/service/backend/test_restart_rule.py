"""Triggers, guard and traffic log call the same pair of scrapes a restart, or none of them does."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from calibrator.core.admission.triggers import TriggerKind, TriggerPolicy
from calibrator.core.live.change_test import GuardPolicy
from calibrator.core.publish.fleet import FleetScrape, ReplicaScrape
from calibrator.core.records.objective import parse_objective
from calibrator.core.records.server_load import Histogram, ServerLoad
from calibrator.service.backend.guard import GuardWatch
from calibrator.service.backend.traffic import STEP_S, TrafficLog
from calibrator.service.backend.triggers import TriggerWatch

OBJECTIVE = "ttft p99 <= 1s"
PAGE = ServerLoad(
    "vllm", 4.0, 0.0, process_start="1", finished_total=10.0, output_tokens_total=100.0,
    ttft_s=Histogram((1.0, math.inf), (50.0, 50.0)),
)  # fmt: skip


def look(at_s: float, load: ServerLoad) -> FleetScrape:
    return FleetScrape(at_s, 1e9 + at_s, (ReplicaScrape("http://r0/v1", load),), cap=32, replica_cap=32)


@pytest.mark.parametrize(
    ("now", "restarted"),
    [
        (replace(PAGE, finished_total=11.0), False),
        (replace(PAGE, process_start="2"), True),
        (replace(PAGE, process_start=None), True),
        (replace(PAGE, output_tokens_total=99.0), True),
    ],
    ids=["it served", "another start", "the start vanished", "a counter fell"],
)
def test_a_restart_is_the_same_for_every_watch(now: ServerLoad, *, restarted: bool) -> None:
    triggers, log = TriggerWatch(TriggerPolicy(), TrafficLog()), TrafficLog()
    guard = GuardWatch(GuardPolicy(), (parse_objective(OBJECTIVE),))
    for second in range(64):  # the replica answers with the other page from the fifth second on
        page = look(float(second), PAGE if second < 5 else now)
        triggers.observe(page)
        log.observe(page, is_sweeping=False)
        if second >= 4:
            guard.observe(page)
        if second == 5:
            assert (guard.view().bounds_s[OBJECTIVE] is None) is restarted, "what grew between the two pages counts"
    assert (TriggerKind.RESTART in triggers.triggers.waiting) is restarted
    assert sum(mix.seconds for mix in log.slices(100.0, 200.0)) == (4.0 if restarted else STEP_S)

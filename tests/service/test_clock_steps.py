"""Somebody sets the wall clock of a running service: no sweep starts for it, none is put off, no cap rises."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from structlog.testing import capture_logs
from support.virtual_time import run_virtual
from support.watched_site import CHAT, site

from calibrator.core.admission.admission import DeferralReason, SafetyLimits
from calibrator.core.admission.schedule import Schedule

HOUR_S = 3600
DAY_S = 24 * HOUR_S
STEPS_S = [30 * DAY_S, 7 * HOUR_S, -7 * HOUR_S, -30 * DAY_S]
EVERY_HOUR = replace(CHAT, schedule=Schedule(every_s=HOUR_S, jitter_ratio=0.0))


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[dict[str, object]]]:
    with capture_logs() as seen:
        yield seen  # type: ignore[misc] # structlog's entries are mappings of its own making


@pytest.mark.parametrize("step_s", STEPS_S)
def test_sweeps_go_on_at_their_pace(step_s: float, logs: list[dict[str, object]]) -> None:
    async def scenario() -> None:
        async with site(EVERY_HOUR, 40, 40) as here:
            began_s = here.clock.monotonic()
            await here.pass_(1200)
            here.clock.step_s = step_s
            await here.pass_(2400)
            assert len(here.runner.orders) == 1, "not for the step"
            while len(here.runner.orders) < 2:
                await here.pass_(10)
            assert here.clock.monotonic() - began_s == pytest.approx(HOUR_S + 60.0, abs=15.0)
            assert here.cap == 36

    run_virtual(scenario())
    assert [entry["by_s"] for entry in logs if entry["event"] == "the wall clock was set"] == [step_s]


@pytest.mark.parametrize("step_s", STEPS_S)
def test_a_step_in_the_middle_of_a_sweep_changes_nothing_that_it_finds(step_s: float) -> None:
    async def scenario() -> None:
        async with site(CHAT, 40) as here:
            await here.pass_(30)
            assert here.runner.running
            here.clock.step_s = step_s
            await here.pass_(600)
            assert (len(here.runner.orders), here.cap) == (1, 36)
            due_at = here.view().next_sweep_at
            assert due_at is not None
            assert due_at - here.clock.wall() == pytest.approx(CHAT.schedule.every_s, rel=0.01)

    run_virtual(scenario())


def test_a_day_that_passes_on_the_wall_alone_frees_no_budget() -> None:
    limits = SafetyLimits(requests_per_day=1500)
    runs = replace(EVERY_HOUR, limits=limits)

    async def scenario() -> None:
        async with site(runs, 40) as here:
            await here.pass_(600)
            here.clock.step_s = 2.0 * DAY_S
            await here.pass_(HOUR_S)
            held = here.view().deferred
            assert len(here.runner.orders) == 1
            assert held is not None
            assert held.reason is DeferralReason.REQUESTS
            assert held.until == pytest.approx(here.clock.wall() + DAY_S, abs=2 * HOUR_S)

    run_virtual(scenario())

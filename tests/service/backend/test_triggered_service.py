"""The running service on virtual time: what triggers cause, what probes look like, what a bad metrics page does."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from structlog.testing import capture_logs
from support.live_traffic import lognormal
from support.memory_store import MemoryStore
from support.virtual_time import run_virtual
from support.watched_site import CHAT, Page, site

from calibrator.core.admission.admission import SafetyLimits
from calibrator.core.admission.schedule import Schedule
from calibrator.core.publish.snapshot import Health
from calibrator.core.records.objective import parse_objective
from calibrator.core.records.server_load import ServerLoad
from calibrator.core.workload.mirror import NAME, MirrorPolicy


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[dict[str, object]]]:
    with capture_logs() as seen:
        yield seen  # type: ignore[misc] # structlog's entries are mappings of its own making


def reasons(logs: list[dict[str, object]]) -> list[object]:
    return [entry["why"] for entry in logs if entry["event"] == "sweep started"]


# ------------------------------------------------------------------------------------------------------------ triggers
def test_a_restarted_engine_is_measured_when_it_is_up_and_the_cap_does_not_rise(logs: list[dict[str, object]]) -> None:
    async def scenario() -> None:
        async with site(CHAT, 40, 90) as here:
            await here.pass_(600)
            assert (here.cap, len(here.runner.orders)) == (36, 1)
            here.users.restart("2")
            await here.pass_(590)
            assert len(here.runner.orders) == 1
            await here.pass_(1000)
            assert len(here.runner.orders) == 2
            assert here.runner.orders[1].warm is not None, "what was measured before is still believed"
            assert here.cap == 36, "90 were found on a fresh engine"

    run_virtual(scenario())
    assert reasons(logs) == ["schedule", "restart: http://chat/v1 started anew"]


def test_a_restarted_engine_that_holds_less_lowers_the_cap() -> None:
    async def scenario() -> None:
        async with site(CHAT, 40, 20) as here:
            await here.pass_(600)
            here.users.restart("2")
            await here.pass_(1600)
            assert here.cap == 18

    run_virtual(scenario())


def test_an_engine_in_a_crash_loop_is_not_measured_again_and_again() -> None:
    async def scenario() -> None:
        async with site(CHAT, 40) as here:
            for start in range(25):  # five hours, each twelve minutes up, ready to be measured for two of them
                here.users.restart(str(start))
                await here.pass_(720)
            assert 2 <= len(here.runner.orders) <= 6, "the first, and at most one an hour"

    run_virtual(scenario())


def test_a_new_version_is_measured_cold_and_may_raise(logs: list[dict[str, object]]) -> None:
    async def scenario() -> None:
        async with site(CHAT, 40, 44) as here:
            here.users.version = "1"
            await here.pass_(600)
            here.users.version = "2"
            await here.pass_(1600)
            assert here.runner.orders[1].warm is None
            assert here.cap == 39

    run_virtual(scenario())
    assert reasons(logs)[1] == "version: vllm 1 became vllm 2"


def test_other_traffic_is_measured_again(logs: list[dict[str, object]]) -> None:
    async def scenario() -> None:
        async with site() as here:
            await here.pass_(8000)
            here.users.prompt = lognormal(1500, 0.7)
            await here.pass_(8000)
            assert len(here.runner.orders) == 2
            assert "differ from the probes'" in here.view().traffic_note

    run_virtual(scenario())
    assert str(reasons(logs)[1]).startswith("drift: prompts changed")


def test_another_configuration_is_measured_after_the_restart_of_the_service(logs: list[dict[str, object]]) -> None:
    async def scenario() -> None:
        store = MemoryStore()
        async with site(CHAT, 40, store=store) as here:
            await here.pass_(600)
        stricter = replace(CHAT, objectives=(parse_objective("ttft p99 <= 200ms"),))
        async with site(stricter, 40, store=store, run="b") as here:
            await here.pass_(100)
            assert len(here.runner.orders) == 1
        async with site(stricter, 40, store=store, run="c") as here:
            await here.pass_(3000)
            assert here.runner.orders == [], "nothing changed this time"

    run_virtual(scenario())
    assert reasons(logs)[1] == "configuration: objectives was ttft p99 <= 500ms, is ttft p99 <= 200ms"


def test_in_observe_mode_a_trigger_is_told_once_and_sends_nothing(logs: list[dict[str, object]]) -> None:
    async def scenario() -> None:
        async with site(replace(CHAT, limits=SafetyLimits(observe=True))) as here:
            await here.pass_(600)
            here.users.restart("2")
            await here.pass_(4000)
            assert here.runner.orders == []

    run_virtual(scenario())
    assert len([entry for entry in logs if entry["event"] == "sweep deferred"]) == 2, "the first sweep, the restart"


# -------------------------------------------------------------------------------------------------------------- mirror
MIRROR = replace(CHAT, mirror=MirrorPolicy(), schedule=Schedule(every_s=7200.0, jitter_ratio=0.0))


def test_probes_become_like_the_users_once_enough_were_seen() -> None:
    async def scenario() -> None:
        async with site(MIRROR) as here:
            await here.pass_(15_000)
            first, second = here.runner.orders[:2]
            assert first.workload == MIRROR.workload
            assert first.prior_warnings[0].startswith("not mirrored")
            assert second.prior_warnings == ()
            (cls,) = second.workload.classes
            assert cls.name == NAME
            assert cls.prompt_tokens == pytest.approx(sum(here.users.prompts) / len(here.users.prompts), rel=0.1)
            assert second.workload.prefix_reuse_ratio == pytest.approx(0.3, abs=0.01)
            assert second.warm is not None, "the same backend, measured with other probes"

    run_virtual(scenario())


def test_mirroring_survives_a_metrics_page_that_is_gone() -> None:
    async def scenario() -> None:
        async with site(MIRROR, page=lambda: None, problem="The metrics page answers 401. Give api_key.") as here:
            await here.pass_(15_000)
            assert [order.workload for order in here.runner.orders[:2]] == [MIRROR.workload] * 2
            assert all(order.prior_warnings for order in here.runner.orders)

    run_virtual(scenario())


# ------------------------------------------------------------------------------------------------ bad metrics pages
def flapping() -> Page:
    looks = itertools.count()
    return lambda: None if next(looks) % 3 == 0 else ServerLoad("vllm", 4.0, 0.0, process_start="1")


def changing() -> Page:
    looks = itertools.count()
    return lambda: ServerLoad("vllm", 4.0, 0.0, process_start=str(next(looks) % 2))


def falling() -> Page:
    looks = itertools.count(10**6, -1)
    return lambda: ServerLoad("vllm", 4.0, 0.0, output_tokens_total=float(next(looks)))


PAGES: dict[str, Callable[[], Page]] = {
    "missing": lambda: lambda: None,
    "frozen": lambda: lambda: ServerLoad("vllm", 4.0, 0.0, process_start="1", output_tokens_total=9.0),
    "flapping": flapping,
    "changing processes": changing,
    "counters that only fall": falling,
    "another model's": lambda: lambda: ServerLoad("vllm", 0.0, 0.0, model="other", process_start="1"),
    "absurd": lambda: lambda: ServerLoad("vllm", 1e300, 1e300, process_start="1"),
}


@pytest.mark.parametrize("name", PAGES)
def test_a_bad_metrics_page_neither_breaks_the_service_nor_raises_a_cap(name: str) -> None:
    """An hour and more, one calibration at the start: nothing on the page raises the cap or starts a sweep."""

    async def scenario() -> None:
        async with site(CHAT, 40, 400, page=PAGES[name]()) as here:
            caps = []
            for _ in range(75):
                await here.pass_(60)
                caps.append(here.cap)
            assert max(caps) <= 36
            assert min(caps) >= 1
            assert len(here.runner.orders) <= (0 if name == "changing processes" else 1)
            assert here.view().health is not Health.ERROR or name == "changing processes"

    run_virtual(scenario())


def test_why_a_page_tells_nothing_is_shown_and_is_no_error() -> None:
    words = "The metrics page http://chat/metrics answers 401. Give api_key, or a metrics_url that needs none."

    async def scenario() -> None:
        async with site(CHAT, 40, page=lambda: None, problem=words) as here:
            await here.pass_(120)
            assert here.view().metrics_problem == words
            assert (here.view().health, here.cap) == (Health.OK, 36)

    run_virtual(scenario())

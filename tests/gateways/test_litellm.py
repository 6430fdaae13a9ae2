"""The real LiteLLM proxy with the shipped configuration and callback: the cap holds at the backend, no place leaks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.gateway_site import (
    BACKEND,
    CALIBRATOR,
    DEPLOYED,
    INGRESS,
    ROOT,
    TOKEN,
    TOKENS,
    calibrator_config,
    in_own_network,
    pin,
    program,
    wait_until,
)
from support.llm_site import API_KEY, LEFT, MIXED, Ask, Fate, LlmBench, llm_bench
from support.require import require
from support.service_process import Service, serving

LITELLM = ROOT / ".venv-litellm" / "bin" / "litellm"
CONFIG = DEPLOYED / "litellm" / "config.yaml"
STATIC_CAP = 4  # in the shipped files, each worker's
CAP = 12
BEYOND = 8  # requests of a burst that there is no place for
TURNS = 10  # requests that end before a cap is believed
LATENCY_S = 0.3  # where the backend answers by itself
START_S = 300.0  # it imports for long, and each worker anew, on a busy machine
LIMIT_S = 300.0  # against hanging for ever
KINDS = (
    Ask(stream=True),
    Ask(path="/v1/embeddings"),
    Ask(path="/v1/messages"),
    Ask(path="/v1/messages", stream=True),
    Ask(call_id="one-for-all"),
)

pytestmark = pytest.mark.timeout(1200)


@contextmanager
def litellm(folder: Path, workers: int) -> Iterator[Path]:
    """The proxy, answering; its log."""
    require("LiteLLM", found=LITELLM.exists(), remedy="make .venv-litellm/.wheel")
    environ = {
        "CALIBRATOR_URL": f"http://127.0.0.1:{CALIBRATOR}",
        "CALIBRATOR_TOKEN": TOKENS["READER"],
        "LITELLM_MASTER_KEY": API_KEY,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # there is no network to fetch one from
    }
    if os.environ.get("TESTS_OF_THE_WHEEL") != "1":
        environ["PYTHONPATH"] = str(ROOT)
    command = [str(LITELLM), "--config", str(CONFIG), "--host", "127.0.0.1", "--port", str(INGRESS)]
    log = folder / "litellm.log"
    # uvicorn ends workers that do not answer for 5 s: on a busy machine, all of them while they still import.
    command += ["--num_workers", str(workers), "--timeout_worker_healthcheck", f"{START_S:.0f}"]
    with program(command, environ, log) as process:

        def is_up() -> bool:
            assert process.poll() is None, log.read_text()
            return log.read_text().count("Application startup complete") == workers

        wait_until(is_up, "LiteLLM starts", START_S)
        yield log


def settled(site: LlmBench) -> None:
    wait_until(lambda: site.in_flight == 0, "the backend is idle", LIMIT_S)
    site.pass_time(0.5)


def exactly(site: LlmBench, cap: int, ask: Ask) -> None:
    """Of a burst, so many come to the backend and all others are told to come later, while it answers nobody."""
    settled(site)
    site.ask((ask,))
    begun_s, before = site.note(f"burst: {ask.path}{' stream' if ask.stream else ''}"), len(site.answers)
    with site.keeping():
        burst = site.sending(cap + BEYOND)
        wait_until(
            lambda: site.in_flight == cap and len(site.answers) == before + BEYOND,
            f"{cap} are at the backend and {BEYOND} refused",
            LIMIT_S,
        )
    answers = burst.result(LIMIT_S)
    refused = [answer for answer in answers if answer.status == 429]
    assert site.peak(begun_s) == cap
    assert (len(refused), {answer.status for answer in answers}) == (BEYOND, {200, 429}), ask
    if ask.path != "/v1/messages":  # LiteLLM drops the header on that route
        assert {answer.headers["retry-after"] for answer in refused} == {"1"}


def no_place_is_lost(site: LlmBench, cap: int) -> None:
    site.note("is every place still there?")
    exactly(site, cap, Ask())


def mixed_load(site: LlmBench, cap: int, count: int) -> None:
    """So many requests that were let in, of every kind and with every end."""
    settled(site)
    site.ask(MIXED)
    begun_s, before = site.note(f"{count} mixed requests"), len(site.answers)

    def let_in() -> int:
        return sum(answer.status != 429 for answer in site.answers[before:])

    with site.load(cap + 4):
        wait_until(lambda: let_in() >= count, f"{count} requests are let in", 2 * LIMIT_S)
    statuses = [answer.status for answer in site.answers[before:]]
    took_s = site.note("mixed requests ended") - begun_s
    tally = {status: statuses.count(status) for status in sorted(set(statuses))}
    print(f"mixed: {len(statuses)} requests in {took_s:.1f} s, {tally}, backend max {site.peak(begun_s)}")
    assert set(tally) >= {LEFT, 200, 500}
    assert site.peak(begun_s) <= cap


def leave_early(site: LlmBench) -> None:
    """Before the answer begins. The backend must have been left, too, when another takes the place."""
    settled(site)
    site.ask((Ask(path="/v1/messages", stream=True, leaves_after_s=0.05), Ask(stream=True, leaves_after_s=0.05)))
    before, begun_s = len(site.answers), site.note("clients leave streams before they begin")
    with site.keeping():
        with site.load(2 * CAP):
            wait_until(lambda: len(site.answers) > before + 150, "many left", LIMIT_S)
        wait_until(lambda: site.in_flight == 0, "the backend, which answers nobody, is left by all", LIMIT_S)
    assert site.peak(begun_s) <= CAP


def stays_at(site: LlmBench, cap: int) -> bool:
    """Is each request that ends followed by one, and never by two? More wait than there are places."""
    begun_s = site.now_s()
    for _ in range(TURNS):
        ended = site.ended
        site.let_go()

        def is_full(ended: int = ended) -> bool:
            return site.ended > ended and site.in_flight >= cap

        wait_until(is_full, "the place is taken again", LIMIT_S)
    return site.peak(begun_s) == cap


def wait_for_cap(site: LlmBench, cap: int) -> None:
    """Until the load, which is more, keeps the backend filled up to it; what is over a lower cap is let go."""

    def is_in_force() -> bool:
        if site.in_flight > cap:
            site.let_go()
        return site.in_flight == cap and stays_at(site, cap)

    wait_until(is_in_force, f"the backend has {cap} in flight", LIMIT_S)
    assert stays_at(site, cap)


def test_one_worker_holds_the_cap_whatever_ends_a_request(tmp_path: Path) -> None:
    def scenario() -> None:
        with llm_bench(BACKEND, latency_s=LATENCY_S) as site, litellm(tmp_path, workers=1) as log:
            no_place_is_lost(site, STATIC_CAP)  # no calibrator yet
            site.note("that was the static cap")
            with serving(calibrator_config(tmp_path), token=TOKEN, environ=TOKENS) as service:
                change_live(site, service)
                for ask in KINDS:
                    exactly(site, CAP, ask)
                mixed_load(site, CAP, 1000)
                leave_early(site)
                no_place_is_lost(site, CAP)
                service.kill()
                site.note("calibrator killed")
                wait_until(lambda: "the calibrator does not respond" in log.read_text(), "a poll fails", LIMIT_S)
            no_place_is_lost(site, CAP)

    in_own_network(scenario)


def change_live(site: LlmBench, service: Service) -> None:
    site.ask((Ask(), Ask(stream=True)))
    with site.keeping(), site.load(CAP + 6):
        for cap in (9, 5, CAP):
            pin(service, cap)
            changed_s = site.note(f"cap pinned to {cap}")
            wait_for_cap(site, cap)
            site.note(f"in force within {site.now_s() - changed_s:.1f} s")


def test_two_workers_share_one_cap(tmp_path: Path) -> None:
    def scenario() -> None:
        config = calibrator_config(tmp_path)
        with llm_bench(BACKEND, latency_s=LATENCY_S) as site, serving(config, token=TOKEN, environ=TOKENS) as service:
            pin(service, CAP)
            with litellm(tmp_path, workers=2), site.keeping(), site.load(2 * CAP):
                site.ask((Ask(), Ask(stream=True), Ask(stream=True, fate=Fate.CUT)))
                service.wait_for_backend("llm", lambda seen: seen["gateway_clients"] == 2, "both workers ask")
                wait_for_cap(site, CAP)
                site.note("both have their shares")
                pin(service, CAP + 6)
                site.note(f"cap pinned to {CAP + 6}")
                wait_for_cap(site, CAP + 6)
                site.note("in force")

    in_own_network(scenario)

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
from support.llm_site import API_KEY, LEFT, MIXED, PLAIN, Ask, Fate, LlmBench, llm_bench
from support.require import require
from support.service_process import Service, serving

LITELLM = ROOT / ".venv-litellm" / "bin" / "litellm"
CONFIG = DEPLOYED / "litellm" / "config.yaml"
STATIC_CAP = 4  # in the shipped files, each worker's
CAP = 12
SHORT_S = 0.3  # of a request, where many are sent
LONG_S = 1.0  # where the backend shall be kept full by a proxy that does a few dozen requests a second
START_S = 180.0  # it imports for long, and each worker anew, on a busy machine
HEARD_S = 20.0  # within which a change is heard: two polls, the requests that it found, and room
SHARES_S = 5.0  # both workers have heard of the division, and what they had in flight before has ended
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
    with program([*command, "--num_workers", str(workers)], environ, log) as process:

        def is_up() -> bool:
            assert process.poll() is None, log.read_text()
            return log.read_text().count("Application startup complete") == workers

        wait_until(is_up, "LiteLLM starts", START_S)
        yield log


def settled(site: LlmBench) -> None:
    wait_until(lambda: site.in_flight == 0, "the backend is idle", 30.0)
    site.pass_time(0.5)


def exactly(site: LlmBench, cap: int, ask: Ask) -> None:
    """Of a burst, so many are answered and no more are ever at the backend; the others are told to come later."""
    settled(site)
    site.ask((ask,))
    begun_s = site.note(f"burst: {ask.path}{' stream' if ask.stream else ''}")
    answers = site.burst(cap + 8)
    refused = [answer for answer in answers if answer.status == 429]
    assert site.peak(begun_s) <= cap
    assert {answer.status for answer in answers} == {200, 429}
    assert len(answers) - len(refused) >= cap, ask
    if ask.path != "/v1/messages":  # LiteLLM drops the header on that route
        assert {answer.headers["retry-after"] for answer in refused} == {"1"}


def no_place_is_lost(site: LlmBench, cap: int) -> None:
    """Slow requests fill the backend up to the cap itself."""
    settled(site)
    site.ask(PLAIN)
    site.latency_s = 3.0
    begun_s = site.note("is every place still there?")
    site.burst(cap + 8)
    site.latency_s = SHORT_S
    assert site.peak(begun_s) == cap


def mixed_load(site: LlmBench, cap: int, count: int) -> None:
    """So many requests that were let in, of every kind and with every end."""
    settled(site)
    site.ask(MIXED)
    begun_s, before = site.note(f"{count} mixed requests"), len(site.answers)

    def let_in() -> int:
        return sum(answer.status != 429 for answer in site.answers[before:])

    with site.load(cap + 4):
        wait_until(lambda: let_in() >= count, f"{count} requests are let in", 120.0)
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
    site.latency_s = 3.0
    before, begun_s = len(site.answers), site.note("clients leave streams before they begin")
    with site.load(2 * CAP):
        wait_until(lambda: len(site.answers) > before + 150, "many left", 60.0)
    settled(site)
    stayed_s = site.mean_stay_s(begun_s)
    site.note(f"all have left; their requests were at the backend for {stayed_s:.2f} s on average")
    assert site.peak(begun_s) <= CAP
    assert stayed_s < 0.5 * site.latency_s, "else it would have worked on for them"
    site.latency_s = SHORT_S


def wait_for_cap(site: LlmBench, cap: int, for_s: float = 1.0) -> None:
    """Until the load, which is more, fills the backend up to it and, for so long, no further."""
    begun_s = site.now_s()

    def is_full() -> bool:
        return site.now_s() >= begun_s + for_s and site.peak(site.now_s() - for_s) == cap

    wait_until(is_full, f"the backend has {cap} in flight", HEARD_S + for_s)


def test_one_worker_holds_the_cap_whatever_ends_a_request(tmp_path: Path) -> None:
    def scenario() -> None:
        with llm_bench(BACKEND, latency_s=SHORT_S) as site, litellm(tmp_path, workers=1) as log:
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
                wait_until(lambda: "does not answer" in log.read_text(), "a poll fails", 20.0)
            no_place_is_lost(site, CAP)

    in_own_network(scenario)


def change_live(site: LlmBench, service: Service) -> None:
    site.ask((Ask(), Ask(stream=True)))
    site.latency_s = LONG_S
    with site.load(CAP + 6):
        for cap in (9, 5, CAP):
            pin(service, cap)
            changed_s = site.note(f"cap pinned to {cap}")
            wait_for_cap(site, cap)
            site.note(f"in force after {site.now_s() - changed_s:.1f} s")
            site.hold(1.5, cap)
    site.latency_s = SHORT_S


def test_two_workers_share_one_cap(tmp_path: Path) -> None:
    def scenario() -> None:
        config = calibrator_config(tmp_path)
        with llm_bench(BACKEND, latency_s=LONG_S) as site, serving(config, token=TOKEN, environ=TOKENS) as service:
            pin(service, CAP)
            with litellm(tmp_path, workers=2), site.load(2 * CAP):
                site.ask((Ask(), Ask(stream=True), Ask(stream=True, fate=Fate.CUT)))
                service.wait_for_backend("llm", lambda seen: seen["gateway_clients"] == 2, "both workers ask")
                wait_for_cap(site, CAP, for_s=SHARES_S)
                held_s = site.note("both have their shares")
                assert site.peak(held_s, site.pass_time(3.0)) <= CAP
                pin(service, CAP + 6)
                site.note(f"cap pinned to {CAP + 6}")
                wait_for_cap(site, CAP + 6, for_s=SHARES_S)
                held_s = site.note("in force")
                assert site.peak(held_s, site.pass_time(3.0)) <= CAP + 6

    in_own_network(scenario)

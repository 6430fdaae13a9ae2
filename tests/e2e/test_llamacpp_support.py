"""The real engine that other tests stand on does what they assume: it starts, streams, counts, queues and stops."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.independent_load import chat, hold_level, make_prompt
from support.llamacpp import LlamaServer, llama_server
from support.tiny_model import TINY, write_model

pytestmark = pytest.mark.engine
SLOTS = 4
FIXTURE = Path(__file__).parents[1] / "fixtures" / "metrics" / "llamacpp.txt"


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Iterator[LlamaServer]:
    with llama_server(model=tiny_model, slots=SLOTS) as server:
        yield server


async def gauges_become(engine: LlamaServer, wanted: Callable[[tuple[int, int]], bool]) -> tuple[int, int]:
    """Poll the engine's own counts until they are as wanted; the test's timeout bounds the wait."""
    while not wanted(gauges := await asyncio.to_thread(engine.gauges)):  # noqa: ASYNC110 - it is another process
        await asyncio.sleep(0.02)
    return gauges


def test_streams_nearly_one_event_a_token_with_usage(engine: LlamaServer) -> None:
    answer = asyncio.run(chat(engine.port, make_prompt(random.Random(1), 64), 32))
    assert answer.completion_tokens == 32
    assert 28 <= answer.events <= 32, "an event a token, but for the few that the engine joins"
    assert 60 <= answer.prompt_tokens <= 70
    assert answer.finish_reason == "length"
    assert answer.done
    assert 0 < answer.ttft_s < answer.e2e_s


def test_exactly_the_requests_above_the_slots_wait(engine: LlamaServer) -> None:
    """The knee oracle: S + 2 in flight are S running and 2 waiting, whatever the machine's speed."""

    async def scenario() -> tuple[int, int]:
        rng = random.Random(2)
        tasks = [asyncio.create_task(chat(engine.port, make_prompt(rng, 64), 1800)) for _ in range(SLOTS + 2)]
        gauges = await gauges_become(engine, lambda seen: sum(seen) >= SLOTS + 2)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return gauges

    assert asyncio.run(scenario()) == (SLOTS, 2)


def test_closed_connections_free_their_slots(engine: LlamaServer) -> None:
    async def scenario() -> tuple[int, int]:
        rng = random.Random(3)
        tasks = [asyncio.create_task(chat(engine.port, make_prompt(rng, 64), 1800)) for _ in range(SLOTS)]
        await gauges_become(engine, lambda seen: seen[0] == SLOTS)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return await gauges_become(engine, lambda seen: sum(seen) == 0)

    assert asyncio.run(scenario()) == (0, 0)


def test_the_independent_load_counts_what_it_was_asked_for(engine: LlamaServer) -> None:
    answers = asyncio.run(hold_level(engine.port, users=SLOTS, requests=10, prompt_tokens=64, output_tokens=8))
    assert [answer.completion_tokens for answer in answers] == [8] * 10


def test_metrics_page_has_the_series_of_the_recorded_one(engine: LlamaServer) -> None:
    """The fixture that the telemetry tests parse is a page of this very engine."""

    def series(page: str) -> set[str]:
        return set(re.findall(r"^(llamacpp:\w+)", page, re.MULTILINE))

    recorded = series(FIXTURE.read_text())
    assert {"llamacpp:requests_processing", "llamacpp:requests_deferred"} <= recorded
    assert series(engine.metrics_page()) == recorded


def test_a_wanted_key_is_asked_for(tiny_model: Path) -> None:
    with llama_server(model=tiny_model, slots=1, api_key="open-sesame") as engine:
        request = urllib.request.Request(f"{engine.api_url}/chat/completions", data=b"{}")
        with pytest.raises(urllib.error.HTTPError) as refusal:
            urllib.request.urlopen(request, timeout=30.0)
        assert refusal.value.code == 401
        refusal.value.close()


def test_nothing_is_left_after_the_stop(tiny_model: Path) -> None:
    with llama_server(model=tiny_model, slots=1) as engine:
        os.kill(engine.pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(engine.pid, 0)
    with pytest.raises(urllib.error.URLError):
        engine.metrics_page()


def test_a_missing_engine_fails_where_it_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    from support.require import require

    require("a part", found=True, remedy="none")
    monkeypatch.setenv("TESTS_REQUIRE_ENGINE", "1")
    with pytest.raises(pytest.fail.Exception, match="a part is not installed: make setup"):
        require("a part", found=False, remedy="make setup")
    monkeypatch.delenv("TESTS_REQUIRE_ENGINE")
    with pytest.raises(pytest.skip.Exception, match="a part is not installed"):
        require("a part", found=False, remedy="make setup")


def test_the_model_is_the_same_every_time(tmp_path: Path, tiny_model: Path) -> None:
    def digest(path: Path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()

    assert digest(write_model(tmp_path / "again.gguf", TINY)) == digest(tiny_model)
    assert digest(write_model(tmp_path / "other.gguf", TINY, seed=1)) != digest(tiny_model)

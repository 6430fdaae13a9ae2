"""The simulated engine over real HTTP: vLLM's manners, its refusals and deaths, its metrics."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import fields, replace
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.metrics_pages import real_page

from calibrator.backends.simulated.parameters import PARAMETER_SETS, SEED_WORKLOAD, EngineParameters, Refusal
from calibrator.backends.simulated.server import ServedEngine, run_server, serving
from calibrator.backends.simulated.truth import true_capacity
from calibrator.core.records.objective import parse_objective
from calibrator.core.records.server_load import Histogram, ServerLoad
from calibrator.core.workload.classes import Workload
from calibrator.errors import ConfigurationError
from calibrator.telemetry.page import PageReader, server_load

FAST = EngineParameters(decode_base_s=0.002, slots=2, max_context_tokens=500)
SLOW = replace(FAST, decode_base_s=0.05)
Scenario = Callable[[ServedEngine, httpx.AsyncClient], Awaitable[None]]


def with_engine(parameters: EngineParameters, scenario: Scenario, **options: Any) -> None:
    async def main() -> None:
        async with (
            serving(parameters, **options) as engine,
            httpx.AsyncClient(base_url=engine.url, timeout=300.0) as client,
        ):
            await scenario(engine, client)

    asyncio.run(main())


def ask(text: str = "one two three", **more: Any) -> dict[str, Any]:
    base = {"model": "simulated", "messages": [{"role": "user", "content": text}], "max_tokens": 5, "ignore_eos": True}
    return base | more


def events(body: str) -> list[Any]:
    """Payloads of the `data:` lines; `[DONE]` as it is."""
    texts = [line.removeprefix("data: ") for line in body.splitlines() if line]
    return [text if text == "[DONE]" else json.loads(text) for text in texts]


async def chat(client: httpx.AsyncClient, **more: Any) -> httpx.Response:
    return await client.post("/v1/chat/completions", json=ask(**more))


async def until(client: httpx.AsyncClient, **wanted: int) -> None:
    """Until `/stats` says so; the test's own time limit ends a wait for something that never comes."""
    while True:
        stats = (await client.get("/stats")).json()
        if all(stats[key] == value for key, value in wanted.items()):
            return
        await asyncio.sleep(0.005)


def test_a_chat_stream_has_a_role_tokens_a_finish_reason_usage_and_an_end() -> None:
    async def scenario(_: ServedEngine, client: httpx.AsyncClient) -> None:
        answer = await chat(client, stream=True, stream_options={"include_usage": True})
        *chunks, usage, done = events(answer.text)
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert done == "[DONE]"
        assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert all(chunk["choices"][0]["delta"]["content"] for chunk in chunks[1:])
        assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 5 + ["length"]
        assert usage["choices"] == []
        assert usage["usage"] == {
            "prompt_tokens": 3 + 4,
            "completion_tokens": 5,
            "total_tokens": 12,
            "prompt_tokens_details": {"cached_tokens": 0},
        }
        without = events((await chat(client, stream=True)).text)
        assert len(without) == 7  # role, five tokens, end

    with_engine(FAST, scenario)


def test_a_reasoning_model_thinks_before_it_speaks() -> None:
    async def scenario(_: ServedEngine, client: httpx.AsyncClient) -> None:
        *chunks, _done = events((await chat(client, stream=True)).text)
        keys = [next(iter(chunk["choices"][0]["delta"])) for chunk in chunks[1:]]
        assert keys == ["reasoning_content"] * 3 + ["content"] * 2
        message = (await chat(client)).json()["choices"][0]["message"]
        assert (len(message["reasoning_content"].split()), len(message["content"].split())) == (3, 2)

    with_engine(replace(FAST, reasoning_tokens=3), scenario)


def test_the_other_three_ways_to_ask() -> None:
    async def scenario(_: ServedEngine, client: httpx.AsyncClient) -> None:
        whole = (await chat(client)).json()
        assert len(whole["choices"][0]["message"]["content"].split()) == whole["usage"]["completion_tokens"] == 5
        parts = [{"role": "user", "content": [{"type": "text", "text": "a b"}, {"type": "text", "text": "c"}]}]
        assert (await chat(client, messages=parts)).json()["usage"]["prompt_tokens"] == 7
        plain = {"model": "simulated", "prompt": "a b c", "max_tokens": 3, "ignore_eos": True}
        text = (await client.post("/v1/completions", json=plain)).json()["choices"][0]["text"]
        assert len(text.split()) == 3
        streamed = events((await client.post("/v1/completions", json=plain | {"stream": True})).text)
        assert "".join(event["choices"][0]["text"] for event in streamed[:-1]) == text

    with_engine(FAST, scenario)


def test_output_length_is_forced_bounded_or_natural() -> None:
    async def scenario(_: ServedEngine, client: httpx.AsyncClient) -> None:
        async def answer(**more: Any) -> tuple[int, str]:
            body = (await chat(client, **more)).json()
            return body["usage"]["completion_tokens"], body["choices"][0]["finish_reason"]

        assert await answer(max_tokens=17) == (17, "length")
        assert await answer(max_tokens=None, max_completion_tokens=9) == (9, "length")
        natural = [await answer(max_tokens=400, ignore_eos=False) for _ in range(12)]
        assert len(set(natural)) > 6
        assert {reason for _, reason in natural} == {"stop"}
        assert [await answer(max_tokens=9, min_tokens=9, ignore_eos=False)] == [(9, "length")]

    with_engine(replace(FAST, natural_output_tokens=10.0), scenario)


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/v1/chat/completions", ask(model="gpt"), 404, "The model `gpt` does not exist."),
        ("/v1/chat/completions", ask("w " * 600), 400, "maximum context length is 500 tokens"),
        ("/v1/chat/completions", ask(max_tokens=0), 400, "max_tokens"),
        ("/v1/chat/completions", ask(messages=[]), 400, "messages"),
        ("/v1/completions", ask(), 400, "prompt"),
        ("/v1/chat/completions", [1], 400, "not an object"),
        ("/v2/chat/completions", ask(), 404, "Not Found"),
        ("/faults", {"meteor": 1}, 400, "Known are"),
        ("/faults", {"stall_s": "long"}, 400, "faults"),
    ],
)
def test_mistakes_are_answered_as_vllm_does(path: str, body: Any, status: int, said: str) -> None:
    async def scenario(_: ServedEngine, client: httpx.AsyncClient) -> None:
        answer = await client.post(path, json=body)
        assert answer.status_code == status
        assert said in answer.text

    with_engine(FAST, scenario)


def test_a_key_guards_the_api_but_not_health_and_metrics() -> None:
    async def scenario(_: ServedEngine, client: httpx.AsyncClient) -> None:
        assert (await chat(client)).status_code == 401
        assert (await client.get("/v1/models")).status_code == 401
        client.headers["authorization"] = "Bearer wrong"
        assert (await chat(client)).status_code == 401
        client.headers["authorization"] = "Bearer sesame"
        assert (await chat(client)).status_code == 200
        assert (await client.get("/v1/models")).json()["data"][0]["max_model_len"] == 500
        del client.headers["authorization"]
        for path in ("/health", "/metrics", "/version"):
            assert (await client.get(path)).status_code == 200

    with_engine(FAST, scenario, api_key="sesame")


@pytest.mark.parametrize("stream", [True, False])
def test_clients_that_leave_free_slots_and_queue_at_once(stream: bool) -> None:  # noqa: FBT001 - a pytest parameter
    """Two run, three wait; all leave; the engine is empty although their answers would take minutes."""

    async def scenario(engine: ServedEngine, client: httpx.AsyncClient) -> None:
        async with httpx.AsyncClient(base_url=engine.url) as leaving:
            asks = [asyncio.create_task(chat(leaving, max_tokens=400, stream=stream)) for _ in range(5)]
            await until(client, running=2, waiting=3)
            for one in asks:
                one.cancel()
            await asyncio.gather(*asks, return_exceptions=True)
        await until(client, in_flight=0, kv_tokens=0, open_connections=1)
        stats = (await client.get("/stats")).json()
        assert stats["peak_in_flight"] == stats["requests_total"] == 5
        assert stats["generated_tokens"] < 5 * 400
        assert (await chat(client, max_tokens=1)).status_code == 200

    with_engine(SLOW, scenario)


@pytest.mark.parametrize("form", list(Refusal))
def test_a_full_queue_refuses_in_both_forms(form: Refusal) -> None:
    async def scenario(_: ServedEngine, client: httpx.AsyncClient) -> None:
        occupied = []
        for running, waiting in ((1, 0), (2, 0), (2, 1)):
            occupied.append(asyncio.create_task(chat(client, max_tokens=400)))
            await until(client, running=running, waiting=waiting)
        refused = await chat(client, stream=True)
        if form is Refusal.STATUS_503:
            assert refused.status_code == refused.json()["error"]["code"] == 503
        else:
            assert refused.status_code == 200
            error, done = events(refused.text)
            assert (error["error"]["code"], done) == (503, "[DONE]")
        assert (await chat(client)).status_code == 503  # without a stream there is only one form
        assert (await client.get("/stats")).json()["refused"] == 2
        for one in occupied:
            one.cancel()

    with_engine(replace(SLOW, max_queue=1, refusal=form), scenario)


def test_streams_are_cut_on_demand() -> None:
    async def scenario(_: ServedEngine, client: httpx.AsyncClient) -> None:
        async def faults(**wanted: float) -> None:
            assert (await client.post("/faults", json=wanted)).status_code == 200

        await faults(truncate_ratio=1.0)
        cut = events((await chat(client, stream=True)).text)
        assert "[DONE]" not in cut
        assert all(event["choices"][0]["finish_reason"] is None for event in cut)

        await faults(reset_ratio=1.0)
        with pytest.raises(httpx.RemoteProtocolError):
            await chat(client, stream=True)

        await faults(hang_ratio=1.0)
        async with client.stream("POST", "/v1/chat/completions", json=ask(stream=True)) as hanging:
            seen: list[str] = []

            async def read() -> None:
                async for text in hanging.aiter_text():
                    seen.append(text)  # noqa: PERF401 - a cancelled comprehension would keep nothing

            with pytest.raises(TimeoutError):
                await asyncio.wait_for(read(), 0.3)  # its tokens take 10 ms
            assert events("".join(seen))
            assert 'finish_reason":"' not in "".join(seen)
        await faults()
        assert events((await chat(client, stream=True)).text)[-1] == "[DONE]"

    with_engine(FAST, scenario)


def test_a_stall_on_demand_stops_everybody_once() -> None:
    async def scenario(_: ServedEngine, client: httpx.AsyncClient) -> None:
        await client.post("/faults", json={"stall_now_s": 0.4})
        assert (await chat(client)).elapsed.total_seconds() > 0.4
        page = await client.get("/metrics")
        longest = samples(page.text)["vllm:time_to_first_token_seconds_sum", ()]
        await chat(client)
        after = samples((await client.get("/metrics")).text)["vllm:time_to_first_token_seconds_sum", ()]
        assert longest > 0.4
        assert after - longest < 0.4  # by the engine's own clock, the second request did not meet it

    with_engine(FAST, scenario)


def samples(page: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Values by name and labels, without those that are always the same."""
    return {
        (sample.name, tuple(sorted((k, v) for k, v in sample.labels.items() if k not in ("engine", "model_name")))):
            sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }  # fmt: skip


def test_metrics_have_vllm_names_and_count_what_happened() -> None:
    async def scenario(_: ServedEngine, client: httpx.AsyncClient) -> None:
        prompt = "word " * 100
        for _ in range(3):
            await chat(client, text=prompt)
        held = [asyncio.create_task(chat(client, max_tokens=390)) for _ in range(3)]
        await until(client, running=2, waiting=1)
        seen = samples((await client.get("/metrics")).text)
        for one in held:
            one.cancel()
        assert seen["vllm:num_requests_running", ()] == 2
        assert seen["vllm:num_requests_waiting", ()] == 1
        assert 0 < seen["vllm:kv_cache_usage_perc", ()] < 1
        assert seen["vllm:num_preemptions_total", ()] == 0
        assert seen["vllm:prompt_tokens_total", ()] >= 3 * 104
        assert seen["vllm:generation_tokens_total", ()] >= 15
        assert seen["vllm:request_success_total", (("finished_reason", "length"),)] == 3
        assert seen["vllm:prefix_cache_queries_total", ()] == 3 * 96  # whole blocks of 16
        assert seen["vllm:prefix_cache_hits_total", ()] == 2 * 96
        assert seen["vllm:admission_rejections_total", (("reason", "max_num_queued_reqs"),)] == 0
        assert seen["vllm:request_prompt_tokens_sum", ()] == 3 * 104
        assert seen["vllm:request_generation_tokens_bucket", (("le", "5.0"),)] == 3
        assert seen["vllm:e2e_request_latency_seconds_count", ()] == 3
        assert seen["vllm:request_time_per_output_token_seconds_count", ()] == 3
        assert seen["vllm:time_to_first_token_seconds_bucket", (("le", "+Inf"),)] >= 3  # at the first token already
        assert seen["process_start_time_seconds", ()] > 1.7e9

    with_engine(SLOW, scenario)


def test_the_page_is_read_as_a_vllm_with_the_bounds_of_a_real_one() -> None:
    async def scenario(_: ServedEngine, client: httpx.AsyncClient) -> None:
        await chat(client)
        reader = PageReader()
        reader.feed((await client.get("/metrics")).content)
        load, real = server_load(reader.text(), "simulated"), server_load(real_page("vllm"), "tiny")
        assert load is not None
        assert real is not None
        for column in fields(ServerLoad):
            value, model = getattr(load, column.name), getattr(real, column.name)
            assert (value is None) is (model is None), column.name
            if isinstance(value, Histogram):
                shared = min(len(value.bounds), len(model.bounds)) - 1  # token bounds end with the context
                assert value.bounds[:shared] == model.bounds[:shared], column.name

    with_engine(SLOW, scenario)


def test_the_truth_route_answers_for_the_asked_traffic_while_serving_goes_on() -> None:
    sla = parse_objective("ttft p99 <= 60ms")
    other = Workload((replace(SEED_WORKLOAD.classes[0], prompt_tokens=50, prompt_sigma=0.0, spread_ratio=0.0),))

    async def scenario(_: ServedEngine, client: httpx.AsyncClient) -> None:
        query = {"objective": str(sla), "prompt_tokens": 50, "prompt_sigma": 0, "spread_ratio": 0}
        asked = asyncio.create_task(client.get("/truth", params=query))
        assert (await chat(client)).status_code == 200
        answer = (await asked).json()
        assert answer["capacity"] == true_capacity(PARAMETER_SETS["seed"], other, [sla]).capacity
        assert answer["levels"][0].keys() == {"level", "requests", "exceedance_ratios", "holds"}
        assert (await client.get("/truth", params=query)).json() == answer
        for wrong in ({}, {"objective": "soon"}, query | {"prompt_tokens": "many"}, query | {"mood": 1}):
            assert (await client.get("/truth", params=wrong)).status_code == 400

    with_engine(PARAMETER_SETS["seed"], scenario)


def test_each_served_set_is_asked_with_its_own_traffic() -> None:
    async def scenario(engine: ServedEngine, _: httpx.AsyncClient) -> None:
        assert engine.api.workload.classes[0].prompt_tokens == 2000

    with_engine(PARAMETER_SETS["long_prompts"], scenario)


def test_a_taken_port_is_one_clear_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=str(port)):
            run_server(FAST, host="127.0.0.1", port=port, ready=lambda _: None)


def test_as_a_program_it_says_when_it_is_ready_and_ends_when_told() -> None:
    program = [sys.executable, "-m", "calibrator.backends.simulated", "--port", "0", "--parameters", "small"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        word, url = process.stdout.readline().split()
        assert word == "READY"
        assert httpx.get(f"{url}/health", timeout=20.0).status_code == 200
        process.terminate()
        assert process.wait(20.0) == 0

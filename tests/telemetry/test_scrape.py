"""Engines' own metrics: recognised by their names, summed and filtered rightly, and never a reason to raise.

The pages are built from the published metric names; the live ones are read in the engine tests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from support.scripted_server import Act, scripted
from support.wire import head, sized

from calibrator.core.server_load import ServerLoad
from calibrator.errors import ConfigurationError
from calibrator.ports import Target
from calibrator.telemetry.engines import ENGINES
from calibrator.telemetry.scrape import HttpTelemetry, derived_metrics_url, parse_server_load

VLLM = """\
# HELP process_start_time_seconds Start time of the process since unix epoch in seconds.
# TYPE process_start_time_seconds gauge
process_start_time_seconds 1.79454321e+09
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 8.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="m"} 3.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 3.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="deferred"} 0.0
# HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means 100 percent usage.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
# HELP vllm:num_preemptions_total Cumulative number of preemption from the engine.
# TYPE vllm:num_preemptions_total counter
vllm:num_preemptions_total{engine="0",model_name="m"} 2.0
vllm:num_preemptions_created{engine="0",model_name="m"} 1.79454322e+09
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.001",model_name="m"} 0.0
vllm:cache_config_info{block_size="128",engine="0",enable_prefix_caching="True"} 1.0
"""

LLAMA = """\
# HELP llamacpp:prompt_tokens_total Number of prompt tokens processed.
# TYPE llamacpp:prompt_tokens_total counter
llamacpp:prompt_tokens_total 1024
# HELP llamacpp:requests_processing Number of requests processing.
# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing 4
# HELP llamacpp:requests_deferred Number of requests deferred.
# TYPE llamacpp:requests_deferred gauge
llamacpp:requests_deferred 290
"""

VLLM_LOAD = ServerLoad("vllm", 8.0, 3.0, 0.25, 2.0, "1794543210.0")


def only(name: str) -> str:
    """The samples of one series."""
    return "\n".join(line for line in VLLM.splitlines() if line.startswith(name + "{")) + "\n"


@pytest.mark.parametrize(
    ("text", "header", "load"),
    [
        (VLLM, None, VLLM_LOAD),
        (VLLM.replace("\n", "\r\n"), None, VLLM_LOAD),
        (VLLM, "123", VLLM_LOAD),  # the metric is better than the header
        (VLLM.replace("kv_cache_usage_perc", "gpu_cache_usage_perc"), None, VLLM_LOAD),  # an older name
        (LLAMA, "123", ServerLoad("llama.cpp", 4.0, 290.0, process_start="123")),
        (LLAMA, None, ServerLoad("llama.cpp", 4.0, 290.0)),
        (only("vllm:num_requests_running"), None, ServerLoad("vllm", 8.0)),  # every other series is optional
        (VLLM.replace(" 3.0\n", " NaN\n"), None, ServerLoad("vllm", 8.0, None, 0.25, 2.0, "1794543210.0")),
        ("", None, None),
        ("process_start_time_seconds 1\nother_metric 2\n", None, None),  # an engine we do not know
        ("<html>404</html>", None, None),
    ],
)
def test_a_page_becomes_a_load(text: str, header: str | None, load: ServerLoad | None) -> None:
    assert parse_server_load(text, "m", header) == load


def test_engines_of_one_process_are_summed_and_the_fullest_cache_counts() -> None:
    second = VLLM.replace('engine="0"', 'engine="1"').replace(" 0.25", " 0.75")
    samples = "".join(f"{line}\n" for line in second.splitlines() if line.startswith("vllm:"))
    assert parse_server_load(VLLM + samples, "m") == ServerLoad("vllm", 16.0, 6.0, 0.75, 4.0, "1794543210.0")


def test_another_model_of_the_process_is_left_out_but_an_alias_counts_all() -> None:
    other = "".join(f"{line}\n" for line in VLLM.replace('"m"', '"other"').splitlines() if line.startswith("vllm:"))
    assert parse_server_load(VLLM + other, "m") == VLLM_LOAD
    load = parse_server_load(VLLM + other, "adapter")
    assert load is not None
    assert load.in_flight_requests == 22.0


def test_a_broken_sample_of_a_wanted_series_is_an_error_of_the_page() -> None:
    with pytest.raises(ValueError, match="x"):
        parse_server_load('vllm:num_requests_running{model_name="m"} x\n', "m")


def test_no_two_engines_share_a_name() -> None:
    """Otherwise the order of the table would decide which engine it is."""
    names = [name for row in ENGINES for name in row.names]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("url", "metrics_url"),
    [
        ("http://h:8000/v1", "http://h:8000/metrics"),
        ("http://h:8000/v1/", "http://h:8000/metrics"),
        ("https://h/engine/v1", "https://h/engine/metrics"),
        ("http://h:8000", "http://h:8000/metrics"),
    ],
)
def test_the_metrics_page_is_derived_from_the_base_url(url: str, metrics_url: str) -> None:
    assert derived_metrics_url(url) == metrics_url


def page(text: str, *more: str) -> bytes:
    return sized(text.encode(), "200 OK", "text/plain; version=0.0.4", *more)


def scrape(
    replies: list[Any], check: Callable[[list[bytes]], None] = lambda _: None, **target: Any
) -> ServerLoad | None:
    async def run() -> ServerLoad | None:
        async with scripted(replies) as server:
            address = f"http://127.0.0.1:{server.port}"
            if "metrics_url" in target:
                target["metrics_url"] = address + target["metrics_url"]
            telemetry = HttpTelemetry(Target(f"{address}/v1", "m", **target), timeout_s=0.5)
            load = await telemetry.scrape()
            await telemetry.close()
            check(server.requests)
            return load

    return asyncio.run(run())


def test_a_scrape_over_http() -> None:
    assert scrape([page(VLLM)]) == VLLM_LOAD
    load = scrape([page(LLAMA, "Process-Start-Time-Unix: 987")])
    assert load is not None
    assert load.process_start == "987"


def test_the_key_goes_to_the_engine_but_not_to_a_metrics_page_elsewhere() -> None:
    def has_key(requests: list[bytes]) -> None:
        assert requests[0].startswith(b"GET /metrics ")
        assert b"authorization: bearer key" in requests[0].lower()

    def has_none(requests: list[bytes]) -> None:
        assert requests[0].startswith(b"GET /prometheus ")
        assert b"authorization" not in requests[0].lower()

    assert scrape([page(VLLM)], has_key, api_key="key") == VLLM_LOAD
    assert scrape([page(VLLM)], has_none, api_key="key", metrics_url="/prometheus") == VLLM_LOAD


@pytest.mark.parametrize(
    "replies",
    [
        [sized(b"no", "404 Not Found", "text/plain")],
        [sized(VLLM.encode(), "503 Service Unavailable", "text/plain")],
        [page("<html></html>")],
        [page('vllm:num_requests_running{model_name="m"} x\n')],
        [sized(b"", "307 Temporary Redirect", "text/plain", "Location: http://127.0.0.1:1/")],
        [Act.HANG],
        [Act.RESET],
        [head("200 OK", "text/plain", "Content-Length: 10") + b"x", Act.CLOSE],
        [b"SSH-2.0\r\n", Act.CLOSE],
        [head("200 OK", "text/plain", "Content-Length: 9000000"), b"#" * 9_000_000],
    ],
    ids=["404", "503", "html", "broken", "redirect", "hang", "reset", "truncated", "ssh", "huge"],
)
def test_trouble_is_none_and_never_an_exception(replies: list[Any]) -> None:
    assert scrape(replies) is None


def test_nobody_listening_is_none() -> None:
    async def run() -> ServerLoad | None:
        telemetry = HttpTelemetry(Target("http://127.0.0.1:1/v1", "m"))
        try:
            return await telemetry.scrape()
        finally:
            await telemetry.close()

    assert asyncio.run(run()) is None


def test_certificate_files_that_cannot_be_used_are_told_at_once() -> None:
    with pytest.raises(ConfigurationError, match=r"missing\.pem"):
        HttpTelemetry(Target("https://127.0.0.1/v1", "m", ca_file="missing.pem"))

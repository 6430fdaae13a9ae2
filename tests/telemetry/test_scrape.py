"""Engines' own metrics: recognised by their names, added up and filtered rightly, and never a reason to raise."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.metrics_pages import built_page, real_page, relabelled
from support.scripted_server import Act, scripted
from support.wire import head, sized

from calibrator.core.records.server_load import HISTOGRAMS, Histogram, ServerLoad
from calibrator.errors import ConfigurationError
from calibrator.ports.sweeps import Target
from calibrator.telemetry.engines import COLUMNS, ENGINES, EngineMetrics
from calibrator.telemetry.page import MAX_LINES, MAX_PAGE_BYTES, MAX_WANTED, PageError, PageReader, server_load
from calibrator.telemetry.scrape import HttpTelemetry

VLLM, LLAMA = real_page("vllm"), real_page("llamacpp")
BUILT = tuple(row for row in ENGINES if row.engine not in ("vllm", "llama.cpp"))


def parsed(text: str, model: str = "tiny", header: str | None = None) -> ServerLoad | None:
    reader = PageReader()
    reader.feed(text.encode())
    return server_load(reader.text(), model, header)


def load_of(text: str, model: str = "tiny", header: str | None = None) -> ServerLoad:
    load = parsed(text, model, header)
    assert load is not None
    return load


# -------------------------------------------------------------------------------------------------------- real pages
def test_the_page_of_a_running_vllm() -> None:
    load = load_of(VLLM)
    assert load.engine == "vllm"
    assert (load.running_requests, load.waiting_requests) == (3.0, 0.0)
    assert load.kv_usage_ratio == pytest.approx(0.0137, abs=1e-4)
    assert (load.preemptions_total, load.refused_total, load.finished_total) == (0.0, 0.0, 9.0)
    assert (load.prompt_tokens_total, load.output_tokens_total) == (9648.0, 2278.0)
    assert (load.prefix_queried_tokens_total, load.prefix_hit_tokens_total) == (9648.0, 1408.0)
    assert (load.model, load.process_start) == ("tiny", "1795483842.92")
    assert load.ttft_s is not None
    assert load.ttft_s.bounds[:3] == (0.001, 0.005, 0.01)
    assert len(load.ttft_s.bounds) == 23
    assert load.e2e_s is not None
    assert load.e2e_s.bounds[-3:] == (1920.0, 7680.0, math.inf)
    assert load.e2e_s.total == 9.0
    assert load.tpot_s is not None
    assert load.tpot_s.counts[:2] == (5.0, 9.0)
    assert load.prompt_tokens is not None
    assert load.prompt_tokens.counts[-6:] == (0.0, 1.0, 3.0, 8.0, 9.0, 9.0)[-6:]
    assert load.output_tokens is not None
    assert load.output_tokens.total == 9.0


def test_the_page_of_a_running_llamacpp() -> None:
    expected = ServerLoad(
        "llama.cpp",
        running_requests=4.0,
        waiting_requests=2.0,
        prompt_tokens_total=330.0,
        output_tokens_total=32.0,
        prefix_queried_tokens_total=330.0,
        prefix_hit_tokens_total=0.0,
        process_start="123",
    )
    assert parsed(LLAMA, "tiny", "123") == expected


def test_the_metric_tells_the_start_better_than_the_header() -> None:
    assert load_of(VLLM, header="123").process_start == "1795483842.92"


# ------------------------------------------------------------------------------------------------------- built pages
@pytest.mark.parametrize("row", BUILT, ids=lambda row: row.engine)
def test_a_page_built_from_the_table_is_that_engines(row: EngineMetrics) -> None:
    """Every column the row has is filled, every other one is unknown."""
    load = load_of(built_page(row), "m")
    assert load.engine == row.engine
    for part, column in row.columns():
        value = getattr(load, part)
        if not column:
            assert value is None, part
        elif part in HISTOGRAMS:
            assert value == Histogram((0.5, 10.0, math.inf), (1.0, 2.0, 3.0)), part
        else:
            is_both = row.running_holds_waiting and part == "running_requests"
            assert value == (0.0 if is_both else 2.0 * (1 if part == "kv_usage_ratio" else len(column[0]))), part
    assert load.model == ("m" if row.model_label else None)


def test_no_two_engines_share_the_gauge_that_tells_them_apart() -> None:
    """Otherwise the order of the table would decide which engine it is."""
    gauges = [name for row in ENGINES for name in row.gauges]
    assert len(gauges) == len(set(gauges))


def test_every_column_is_a_field_of_the_load() -> None:
    assert set(COLUMNS) <= set(ServerLoad.__dataclass_fields__)


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc", "kv_usage_ratio"),
        ("vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total", "prefix_hit_tokens_total"),
        ("vllm:prefix_cache_queries_total", "vllm:gpu_prefix_cache_queries_total", "prefix_queried_tokens_total"),
    ],
)
def test_older_names_of_vllm_are_read_alike(old: str, new: str, part: str) -> None:
    assert getattr(load_of(VLLM.replace(old, new)), part) == getattr(load_of(VLLM), part) is not None


def test_an_old_and_a_new_name_on_one_page_are_one_value() -> None:
    both = VLLM + relabelled(VLLM, "vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total")
    assert load_of(both) == load_of(VLLM)


def test_swapped_requests_of_older_versions_wait() -> None:
    assert load_of(VLLM + 'vllm:num_requests_swapped{model_name="tiny"} 4\n').waiting_requests == 4.0


# ---------------------------------------------------------------------------------------------- several on one page
def test_engines_of_one_page_are_added_up_and_the_fullest_cache_counts() -> None:
    one = load_of(VLLM)
    second = relabelled(VLLM, 'engine="0"', 'engine="1"').replace(" 0.013678553981436248", " 0.75")
    two = load_of(VLLM + second)
    assert two.kv_usage_ratio == 0.75
    assert (two.running_requests, two.finished_total, two.prompt_tokens_total) == (6.0, 18.0, 19296.0)
    for part in HISTOGRAMS:
        assert getattr(two, part).counts == tuple(2.0 * count for count in getattr(one, part).counts)


def test_engines_with_different_buckets_have_no_common_histogram() -> None:
    second = relabelled(VLLM, 'engine="0"', 'engine="1"').replace('le="7680.0"', 'le="7000.0"')
    assert load_of(VLLM + second).e2e_s is None


def test_another_model_of_the_process_is_left_out_but_an_alias_counts_all() -> None:
    both = VLLM + relabelled(VLLM, '"tiny"', '"other"')
    assert load_of(both) == load_of(VLLM)
    other_only = "vllm:num_requests_swapped"
    assert load_of(both + f'{other_only}{{model_name="other"}} 9\n') == load_of(VLLM), "ours has no such series"
    alias = load_of(both, "adapter")
    assert (alias.running_requests, alias.model) == (6.0, None)


def test_another_models_page_is_said_to_be_so() -> None:
    """Whether it is an alias or a wrong address, the page does not know; the replica stands apart from others."""
    assert load_of(VLLM, "wanted").model == "tiny"


def test_ranks_that_compute_the_same_requests_count_once() -> None:
    row = next(row for row in ENGINES if row.engine == "sglang")
    first = built_page(row).replace('{model_name="m"', '{tp_rank="0",model_name="m"')
    assert load_of(first + first.replace('tp_rank="0"', 'tp_rank="1"'), "m") == load_of(built_page(row), "m")


# --------------------------------------------------------------------------------------------------- bad input: text
@pytest.mark.parametrize(
    "text", ["", "process_start_time_seconds 1\nother_metric 2\n", "<html>404</html>", "\x00\xff" * 500, "{}" * 9]
)
def test_what_no_engine_wrote_is_no_engines_page(text: str) -> None:
    assert parsed(text) is None


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-3"])
def test_values_that_cannot_be_are_unknown(value: str) -> None:
    text = VLLM.replace(
        'vllm:num_requests_waiting{engine="0",model_name="tiny"} 0.0', f"vllm:num_requests_waiting {value}"
    )
    assert load_of(text).waiting_requests is None


def test_a_histogram_that_falls_is_none() -> None:
    bucket = 'vllm:e2e_request_latency_seconds_bucket{engine="0",le="7680.0",model_name="tiny"}'
    assert load_of(VLLM.replace(f"{bucket} 9.0", f"{bucket} 2.0")).e2e_s is None


def test_a_broken_sample_of_a_wanted_series_is_an_error_of_the_page() -> None:
    with pytest.raises(PageError, match="broken"):
        parsed('vllm:num_requests_running{model_name="m"} x\n')


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from([*VLLM.splitlines()[:200], "{", "}", '"', "le=", ",", " 1", "\\", "#", "NaN"]), max_size=12
    )
)
def test_garbage_is_a_load_nothing_or_an_error_of_the_page(parts: list[str]) -> None:
    for text in ("\n".join(parts), "".join(parts), "".join(parts)[: len("".join(parts)) // 2]):
        with contextlib.suppress(PageError):
            parsed(text)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 400), min_size=1, max_size=60))
def test_a_page_is_the_same_however_it_is_cut(cuts: list[int]) -> None:
    whole, parts, rest = PageReader(), PageReader(), VLLM.encode()
    whole.feed(rest)
    for cut in cuts:
        parts.feed(rest[:cut])
        rest = rest[cut:]
    parts.feed(rest)
    assert parts.text() == whole.text()


def test_a_huge_page_is_left_early_and_little_of_it_is_kept() -> None:
    reader, line = PageReader(), b"http_requests_total{path=%r} 1\n" % (b"x" * 200)
    while reader.size_bytes <= MAX_PAGE_BYTES - len(line) * 100:
        reader.feed(line * 100)
    with pytest.raises(PageError, match="larger than 4 MiB"):
        reader.feed(line * 100)
    assert not reader.lines


@pytest.mark.parametrize(
    ("part", "why"),
    [
        (b"\n" * (MAX_LINES + 1), "more than 100000 lines"),
        (b"vllm:num_requests_running 1\n" * (MAX_WANTED + 1), "more than 10000 values"),
        (b"x" * 20_000, "a line longer"),
    ],
)
def test_pages_that_make_work_are_left(part: bytes, why: str) -> None:
    with pytest.raises(PageError, match=why):
        PageReader().feed(part)


# --------------------------------------------------------------------------------------------------------- over HTTP
def page(text: str, *more: str) -> bytes:
    return sized(text.encode(), "200 OK", "text/plain; version=0.0.4", *more)


def scrape(
    *replies: list[Any],
    check: Callable[[list[bytes]], None] = lambda _: None,
    times: int = 1,
    timeout_s: float = 60.0,
    **target: Any,
) -> tuple[ServerLoad | None, str]:
    async def run() -> tuple[ServerLoad | None, str]:
        async with scripted(*replies) as server:
            address = f"http://127.0.0.1:{server.port}"
            if "metrics_url" in target:
                target["metrics_url"] = address + target["metrics_url"]
            telemetry = HttpTelemetry(Target(f"{address}/v1", "tiny", **target), timeout_s=timeout_s)
            for _ in range(times):
                load = await telemetry.scrape()
            await telemetry.close()
            check(server.requests)
            return load, telemetry.problem.replace(address, "")

    return asyncio.run(run())


NOT_FOUND = [sized(b"no", "404 Not Found", "text/plain")]


def paths(requests: list[bytes]) -> list[str]:
    return [request.split()[1].decode() for request in requests]


def test_a_scrape_over_http() -> None:
    assert scrape([page(VLLM)]) == (load_of(VLLM), "")
    load, _ = scrape([page(LLAMA, "Process-Start-Time-Unix: 987")])
    assert load is not None
    assert load.process_start == "987"


def test_the_version_is_asked_once_for_each_start_of_the_engine() -> None:
    version = [sized(b'{"version": "0.32.0"}')]

    def only_once(requests: list[bytes]) -> None:
        assert paths(requests) == ["/metrics", "/version", "/metrics", "/metrics"]

    load, _ = scrape([page(VLLM)], version, [page(VLLM)], check=only_once, times=3)
    assert load is not None
    assert load.version == "0.32.0"

    def twice(requests: list[bytes]) -> None:
        assert paths(requests) == ["/metrics", "/version", "/metrics", "/version"]

    restarted = VLLM.replace("1.79548384292e+09", "1.79548390000e+09")
    load, _ = scrape([page(VLLM)], version, [page(restarted)], [sized(b'{"version": "9"}')], check=twice, times=2)
    assert load is not None
    assert load.version == "9"


@pytest.mark.parametrize("answer", [NOT_FOUND, [sized(b"[")], [sized(b"[1]")], [sized(b'{"version": 7}')], [Act.RESET]])
def test_a_version_that_is_not_told_is_unknown(answer: list[Any]) -> None:
    assert scrape([page(VLLM)], answer) == (load_of(VLLM), "")


def test_the_pages_that_engines_have_are_tried_in_turn_and_the_one_found_is_kept() -> None:
    nim = next(row for row in ENGINES if row.engine == "nim")

    def kept(requests: list[bytes]) -> None:
        assert paths(requests) == ["/metrics", "/prometheus/metrics", "/v1/metrics", "/v1/metrics"]

    load, problem = scrape(NOT_FOUND, NOT_FOUND, [page(built_page(nim, "tiny"))], check=kept, times=2)
    assert load is not None
    assert (load.engine, problem) == ("nim", "")


def test_a_page_that_was_found_and_is_gone_is_looked_for_anew() -> None:
    def all_again(requests: list[bytes]) -> None:
        assert paths(requests)[2:] == ["/metrics", "/metrics", "/prometheus/metrics", "/v1/metrics"]

    load, problem = scrape([page(VLLM)], NOT_FOUND, check=all_again, times=3)
    assert (load, problem[:27]) == (None, "The metrics page /metrics a")


MOVED = [sized(b"", "307 Temporary Redirect", "text/plain", "Location: /metrics/")]


def test_a_redirect_to_the_same_host_is_followed_once_and_remembered() -> None:
    def remembered(requests: list[bytes]) -> None:
        assert paths(requests) == ["/metrics", "/metrics/", "/version", "/metrics/"]
        assert all(b"authorization: bearer key" in request.lower() for request in requests)

    load, problem = scrape(MOVED, [page(VLLM)], NOT_FOUND, [page(VLLM)], check=remembered, times=2, api_key="key")
    assert (load, problem) == (load_of(VLLM), "")


def test_of_several_pages_the_one_that_came_nearest_is_told_of() -> None:
    locked = [sized(b"", "401 Unauthorized", "text/plain")]
    assert "/v1/metrics answers 401. Give api_key" in scrape(NOT_FOUND, NOT_FOUND, locked)[1]
    similar = [page("acme:num_requests_running 1\n")]
    assert "/prometheus/metrics looks like an engine's" in scrape(locked, similar, NOT_FOUND)[1]


def test_the_key_goes_to_the_engine_but_not_to_a_metrics_page_elsewhere() -> None:
    def has_key(requests: list[bytes]) -> None:
        assert requests[0].startswith(b"GET /metrics ")
        assert b"authorization: bearer key" in requests[0].lower()

    def has_none(requests: list[bytes]) -> None:
        assert requests[0].startswith(b"GET /prometheus ")
        assert b"authorization" not in requests[0].lower()

    assert scrape([page(VLLM)], check=has_key, api_key="key")[0] is not None
    assert scrape([page(VLLM)], check=has_none, api_key="key", metrics_url="/prometheus")[0] is not None


def test_further_headers_and_a_key_elsewhere_go_to_the_engine_alike() -> None:
    def has_them(requests: list[bytes]) -> None:
        lines = requests[0].lower().split(b"\r\n")
        assert b"api-key: key" in lines
        assert b"x-org: org" in lines
        assert not any(line.startswith(b"authorization") for line in lines)

    def has_none(requests: list[bytes]) -> None:
        assert b"key" not in requests[0]
        assert b"org" not in requests[0]

    ours = {"api_key": "key", "api_key_in": "header:api-key", "headers": (("X-Org", "org"),)}
    assert scrape([page(VLLM)], check=has_them, **ours)[0] is not None
    assert scrape([page(VLLM)], check=has_none, metrics_url="/prometheus", **ours)[0] is not None


def test_compressed_pages_are_not_asked_for() -> None:
    def asks_for_text(requests: list[bytes]) -> None:
        assert b"accept-encoding: identity" in requests[0].lower()

    scrape([page(VLLM)], check=asks_for_text)


HANG_S = 0.5
TROUBLE: dict[str, tuple[list[Any], str]] = {
    "404": (NOT_FOUND, "The metrics page /metrics answers 404. Switch the engine's metrics on, or give metrics_url."),
    "401": (
        [sized(b"", "401 Unauthorized", "text/plain")],
        "The metrics page /metrics answers 401. Give api_key, or a metrics_url that needs none.",
    ),
    "503": ([sized(VLLM.encode(), "503 Service Unavailable", "text/plain")], "answers 503"),
    "html": ([page("<html></html>")], "is a web page, no metrics. Give the metrics_url of the engine itself."),
    "another program": ([page("x 1\n")], "shows no engine that we know. Give the metrics_url of the engine itself."),
    "an unknown engine": (
        [page("acme:num_requests_running 1\nacme:kv_cache_usage 1\n")],
        "none that we know: it has acme:num_requests_running, acme:kv_cache_usage. Please report its names.",
    ),
    "broken": ([page('vllm:num_requests_running{model_name="m"} x\n')], "is broken"),
    "redirect": (
        [sized(b"", "307 Temporary Redirect", "text/plain", "Location: http://127.0.0.1:1/metrics/")],
        "it redirects to http://127.0.0.1:1/metrics/, which is elsewhere. Give metrics_url",
    ),
    "redirects without end": (
        [sized(b"", "307 Temporary Redirect", "text/plain", "Location: /metrics")] * 9,
        "it redirects to /metrics, again. Give metrics_url",
    ),
    "tls": ([b"\x15\x03\x01\x00\x02\x02\x46", Act.CLOSE], "no HTTP comes back"),
    "hang": ([Act.HANG], f"did not answer within {HANG_S:g} s."),
    "reset": ([Act.RESET], "is out of reach"),
    "truncated": ([head("200 OK", "text/plain", "Content-Length: 10") + b"x", Act.CLOSE], "is out of reach"),
    "ssh": ([b"SSH-2.0\r\n", Act.CLOSE], "is out of reach"),
    "huge": (
        [head("200 OK", "text/plain", "Content-Length: 50000000"), (b"#" * 99 + b"\n") * 160_000],
        "is larger than 4 MiB",
    ),
    "long line": ([head("200 OK", "text/plain", "Content-Length: 90000"), b"#" * 90_000], "has a line longer"),
}


@pytest.mark.parametrize("name", TROUBLE)
def test_trouble_is_none_with_the_reason_and_the_remedy(name: str) -> None:
    replies, words = TROUBLE[name]
    load, problem = scrape(replies, timeout_s=HANG_S if name == "hang" else 60.0)
    assert load is None
    assert words in problem
    assert problem.count(". ") >= 1, "a cause and a remedy"


def test_trouble_that_ends_is_forgotten() -> None:
    assert scrape([sized(b"", "500 Oh", "text/plain")], NOT_FOUND, NOT_FOUND, [page(VLLM)], times=2) == (
        load_of(VLLM),
        "",
    )


def test_nobody_listening_is_none() -> None:
    async def run() -> tuple[ServerLoad | None, str]:
        telemetry = HttpTelemetry(Target("http://127.0.0.1:1/v1", "m"))
        try:
            return await telemetry.scrape(), telemetry.problem
        finally:
            await telemetry.close()

    load, problem = asyncio.run(run())
    assert load is None
    assert "http://127.0.0.1:1/metrics is out of reach" in problem


def test_certificate_files_that_cannot_be_used_are_told_at_once() -> None:
    with pytest.raises(ConfigurationError, match=r"missing\.pem"):
        HttpTelemetry(Target("https://127.0.0.1/v1", "m", ca_file="missing.pem"))

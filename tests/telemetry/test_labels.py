"""What is added up on a metrics page, what counts once, what is not there. Pages as engines write them, cut down."""

from __future__ import annotations

import pytest

from calibrator.core.records.server_load import ServerLoad
from calibrator.telemetry.engines import ENGINES, SPELLINGS, EngineMetrics
from calibrator.telemetry.page import PageReader, server_load

ROWS = {row.engine: row for row in ENGINES}


def load_of(text: str, model: str = "m") -> ServerLoad:
    reader = PageReader()
    reader.feed(text.encode())
    load = server_load(reader.text(), model)
    assert load is not None
    return load


def line(name: str, value: float | str, **labels: object) -> str:
    written = ",".join(f'{key}="{text}"' for key, text in ({"model_name": "m"} | labels).items())
    return f"{name}{{{written}}} {value}\n"


def sglang(running: dict[tuple[tuple[str, object], ...], float], name: str = "sglang:num_running_reqs") -> float | None:
    return load_of("".join(line(name, value, **dict(labels)) for labels, value in running.items())).running_requests


# ----------------------------------------------------------------------------------------------------- ranks and parts
def test_tensor_parallel_ranks_of_sglang_count_once() -> None:
    ranks = {(("tp_rank", tp), ("pp_rank", 0), ("moe_ep_rank", tp)): 5.0 for tp in range(4)}
    assert sglang(ranks) == 5.0


def test_pipeline_ranks_of_sglang_count_once() -> None:
    assert sglang({(("tp_rank", 0), ("pp_rank", pp)): 5.0 for pp in range(2)}) == 5.0


def test_data_parallel_ranks_of_sglang_are_summed_although_tp_rank_numbers_them_too() -> None:
    """--tp 4 --dp 4 --enable-dp-attention: one scheduler for each, with its own requests."""
    ranks = {(("dp_rank", dp), ("tp_rank", dp), ("pp_rank", 0), ("moe_ep_rank", dp)): 1.0 + dp for dp in range(4)}
    assert sglang(ranks) == 10.0


def test_within_a_data_parallel_rank_the_ranks_with_its_work_count_once() -> None:
    """--tp 8 --dp 4 --enable-dp-attention --enable-metrics-for-all-schedulers."""
    ranks = {(("dp_rank", tp // 2), ("tp_rank", tp)): 1.0 + tp // 2 for tp in range(8)}
    assert sglang(ranks) == 10.0


def test_the_lowest_rank_speaks_for_the_others_by_number_and_not_by_text() -> None:
    assert sglang({(("tp_rank", rank),): float(rank) for rank in (10, 9, 11)}) == 9.0


@pytest.mark.parametrize("order", [("", "None", "5"), ("5", "", "None")])
def test_a_total_beside_its_parts_is_not_added_to_them(order: tuple[str, ...]) -> None:
    values = {"": 7.0, "None": 3.0, "5": 4.0}
    assert sglang({(("priority", name), ("tp_rank", 0)): values[name] for name in order}) == 7.0


def test_the_total_may_have_lost_its_empty_label_on_the_way() -> None:
    assert sglang({(("tp_rank", 0),): 7.0, (("priority", "1"), ("tp_rank", 0)): 7.0}) == 7.0


def test_parts_without_a_total_are_added_up() -> None:
    assert sglang({(("priority", "1"), ("tp_rank", 0)): 3.0, (("priority", "5"), ("tp_rank", 0)): 4.0}) == 7.0


def test_each_data_parallel_rank_has_its_own_total() -> None:
    ranks = {
        (("dp_rank", dp), ("tp_rank", dp), ("priority", name)): value
        for dp in range(2)
        for name, value in (("", 5.0), ("1", 2.0), ("2", 3.0))
    }
    assert sglang(ranks) == 10.0


def test_the_queue_is_added_up_likewise_and_the_fullest_memory_counts() -> None:
    page = "".join(
        line("sglang:num_running_reqs", 1.0, dp_rank=dp, tp_rank=dp)
        + line("sglang:num_queue_reqs", 2.0, dp_rank=dp, tp_rank=dp)
        + line("sglang:token_usage", 0.1 * (1 + dp), dp_rank=dp, tp_rank=dp)
        for dp in range(4)
    )
    load = load_of(page)
    assert (load.in_flight_requests, load.kv_usage_ratio) == (12.0, pytest.approx(0.4))


def test_a_counter_that_gains_a_label_is_summed() -> None:
    page = line("sglang:num_running_reqs", 0) + "".join(
        line("sglang:num_requests_total", 4, is_streaming=streaming, new_label=new)
        for streaming in ("true", "false")
        for new in ("a", "b")
    )
    assert load_of(page).finished_total == 16.0
    page = line("vllm:num_requests_running", 0) + "".join(
        line("vllm:request_success_total", 4, finished_reason=reason, engine="0", new_label=new)
        for reason in ("stop", "length", "abort")
        for new in ("a", "b")
    )
    assert load_of(page).finished_total == 16.0


def test_histograms_of_ranks_with_the_same_work_count_once() -> None:
    buckets = "".join(
        line("sglang:time_to_first_token_seconds_bucket", count, tp_rank=rank, le=bound)
        for rank in range(2)
        for bound, count in (("0.5", 2), ("+Inf", 3))
    )
    load = load_of(line("sglang:num_running_reqs", 0, tp_rank=0) + buckets)
    assert load.ttft_s is not None
    assert load.ttft_s.counts == (2.0, 3.0)


@pytest.mark.parametrize("row", [row for row in ENGINES if row.partition], ids=lambda row: row.engine)
def test_labels_that_partition_are_summed(row: EngineMetrics) -> None:
    name = min(row.gauges)
    for label in row.partition:
        page = "".join(line(name, 2, **{row.model_label or "x": "m", label: value}) for value in ("0", "1"))
        assert load_of(page).running_requests == 4.0, label


def test_no_label_has_two_meanings() -> None:
    for row in ENGINES:
        labels = (*row.partition, *row.repeats, *(label for label, _ in row.totals))
        assert len(labels) == len(set(labels)), row.engine


# ------------------------------------------------------------------------------------------------------ not a number
def test_a_gauge_that_is_not_a_number_is_absent() -> None:
    running, waiting = "vllm:num_requests_running", "vllm:num_requests_waiting"
    load = load_of(line(running, "NaN") + line(waiting, 1) + line("vllm:kv_cache_usage_perc", "NaN"))
    assert (load.engine, load.running_requests, load.in_flight_requests, load.kv_usage_ratio) == (
        "vllm", None, None, None,
    )  # fmt: skip
    load = load_of(line(running, 3) + line(waiting, "NaN"))
    assert (load.waiting_requests, load.in_flight_requests) == (None, None), "3 and nobody knows how many more"
    assert load_of(line(running, 3)).in_flight_requests == 3.0, "an engine that has no such gauge"


# ---------------------------------------------------------------------------------------------------------- spellings
@pytest.mark.parametrize(("written", "prefix"), [(written, prefix) for written, prefix, _ in SPELLINGS])
def test_a_prefix_that_something_rewrote_is_the_same_engine(written: str, prefix: str) -> None:
    row = next(row for row in ENGINES if any(name.startswith(prefix) for name in row.gauges))
    page = "".join(line(f"{min(name_of(column))}", 2) for _, column in row.columns()[:3])
    plain, rewritten = load_of(page), load_of(page.replace(prefix, written))
    assert rewritten == plain
    assert plain.engine == row.engine


def name_of(column: tuple[tuple[object, ...], ...]) -> list[str]:
    return [series.name for series in column[0]]  # type: ignore[attr-defined] # a column of Series


def test_a_counter_that_ray_writes_twice_counts_once() -> None:
    page = line("ray_vllm_num_requests_running", 1, ReplicaId="a", WorkerId="w") + "".join(
        line(f"ray_vllm_{name}{suffix}", 50, ReplicaId="a", WorkerId="w")
        for name in ("prompt_tokens", "num_preemptions")
        for suffix in ("", "_total")
    )
    load = load_of(page)
    assert (load.prompt_tokens_total, load.preemptions_total) == (50.0, 50.0)
    assert load_of(page.replace("_total", "_other")).prompt_tokens_total == 50.0


def test_a_frontend_whose_running_requests_hold_the_waiting_ones() -> None:
    page = "maxserve_num_requests_running 9\nmaxserve_num_requests_queued 4\n"
    load = load_of(page)
    assert (load.engine, load.running_requests, load.waiting_requests, load.in_flight_requests) == (
        "max",
        5.0,
        4.0,
        9.0,
    )


def test_dynamos_queue_is_no_part_of_what_is_in_flight() -> None:
    page = "".join(
        line(f"dynamo_frontend_{name}", value, model="m")
        for name, value in (("active_requests", 8), ("inflight_requests", 7), ("queued_requests", 5))
    )
    load = load_of(page)
    assert (load.engine, load.in_flight_requests) == ("dynamo", 8.0)


def test_every_row_says_where_it_was_seen() -> None:
    assert all(row.seen and row.basis in ("live", "source", "documentation", "readers") for row in ENGINES)


# ------------------------------------------------------------------------------------------------------ unknown pages
def reader_of(text: str) -> PageReader:
    reader = PageReader()
    reader.feed(text.encode())
    assert server_load(reader.text(), "m") is None
    return reader


def test_three_names_of_an_unknown_engine_are_kept() -> None:
    names = ("acme:num_requests_running", "acme:kv_cache_usage", "acme:time_to_first_token_seconds", "acme:queue_size")
    page = "http_requests_total 4\n" + "".join(
        f'{name}{suffix}{{model="m"}} 1\n' for name in names for suffix in ("_bucket", "_sum", "")
    )
    assert tuple(reader_of(page).similar) == names[:3]


@pytest.mark.parametrize("page", ["python_gc_objects_collected_total 3\n", "node_cpu_seconds_total 1\n", ""])
def test_pages_of_other_programs_look_like_no_engine(page: str) -> None:
    assert reader_of(page).similar == []


@pytest.mark.parametrize("start", ["<!DOCTYPE html><html>", "\n<html lang='en'>", "<HTML>"])
def test_a_web_page_is_told_from_metrics(start: str) -> None:
    assert reader_of(start).is_web_page
    assert not reader_of("# HELP x y\n").is_web_page

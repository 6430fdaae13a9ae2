"""The single requests of a sweep over HTTP and from the store: AIPerf's names, exact lines, refusals."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from support import records
from support.virtual_time import run_virtual
from support.web_fakes import FakeOperator, app_of, calibrated, client_of, record, snapshot
from typer.testing import CliRunner, Result

from calibrator.cli.app import app
from calibrator.core.records.objective import parse_objective
from calibrator.core.records.sample import Failure, FailureKind, Label, Phase
from calibrator.core.records.sample_log import pack
from calibrator.ports.store import Retention
from calibrator.stores.sql_store import SqlStore
from calibrator.stores.sqlite import SqliteDatabase

ANSWER = replace(records.ANSWER, started_s=10.0, completion_tokens=65)
SAMPLES = [
    ANSWER,
    replace(
        ANSWER, request_id=8, label=Label(3, Phase.RAMP), ttft_s=None, ttfc_s=None, last_token_s=None, stream=False
    ),
    replace(ANSWER, request_id=9, failure=Failure(FailureKind.STATUS, "no room", 503), prompt_tokens=None),
    replace(ANSWER, request_id=10, cancelled=True),
]
PACKED = pack(SAMPLES, {3: 16}, (parse_objective("ttft p99 <= 500ms"),), 1_800_000_000.0)


def answer(query: str = "", sweep_id: str = "") -> httpx.Response:
    async def scenario() -> httpx.Response:
        known = record()
        operator = FakeOperator(snapshot(calibrated()), (known,), packed={known.sweep_id: PACKED})
        async with client_of(app_of(operator)) as client:
            return await client.get(f"/v1/backends/chat/sweeps/{sweep_id or known.sweep_id}/samples{query}")

    return run_virtual(scenario())


def metrics(document: dict[str, Any]) -> dict[str, tuple[float, str]]:
    return {name: (one["value"], one["unit"]) for name, one in document["metrics"].items()}


def test_a_whole_answer_has_aiperf_s_names_and_units() -> None:
    said = answer()
    assert said.headers["content-type"].startswith("application/jsonl")
    whole, unstreamed, failed, cancelled = (json.loads(line) for line in said.text.splitlines())
    assert whole["metadata"] == {
        "session_num": 7,
        "x_request_id": f"calibrator-{record().sweep_id}-7",
        "turn_index": 0,
        "request_start_ns": 1_800_000_010_000_000_000,
        "request_end_ns": 1_800_000_011_500_000_000,
        "benchmark_phase": "profiling",
        "was_cancelled": False,
        "cancellation_time_ns": None,
        "worker_id": "calibrator",
        "record_processor_id": "calibrator",
    }
    assert metrics(whole) == {
        "input_sequence_length": (257, "tokens"),
        "output_sequence_length": (65, "tokens"),
        "request_latency": (1500.0, "ms"),
        "time_to_first_token": (250.0, "ms"),
        "time_to_first_output_token": (300.0, "ms"),
        "inter_token_latency": (15.625, "ms"),
        "output_token_throughput_per_user": (64.0, "tokens/sec/user"),
    }
    assert whole["error"] is None
    assert whole["calibrator"]["level"] == 16
    assert metrics(unstreamed).keys() == {"input_sequence_length", "output_sequence_length", "request_latency"}
    assert unstreamed["metadata"]["benchmark_phase"] == "warmup"
    assert (metrics(failed), failed["error"]["code"], failed["calibrator"]["outcome"]) == ({}, 503, "failed")
    assert (metrics(cancelled), cancelled["error"]["code"]) == ({"error_isl": (257, "tokens")}, 499)
    assert cancelled["metadata"]["cancellation_time_ns"] == cancelled["metadata"]["request_end_ns"]


def test_csv_has_the_same_lines() -> None:
    said = answer("?format=csv")
    assert said.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(said.text)))
    assert [(row["session_num"], row["outcome"], row["error_code"]) for row in rows] == [
        ("7", "ok", ""), ("8", "ok", ""), ("9", "failed", "503"), ("10", "cancelled", "499"),
    ]  # fmt: skip
    assert [row["time_to_first_token"] for row in rows] == ["250.0", "", "", ""]
    assert [row["request_latency"] for row in rows] == ["1500.0", "1500.0", "", ""]


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(one) for one in arguments])


def test_what_is_not_there_is_said() -> None:
    assert answer("?format=xml").status_code == 400
    assert answer(sweep_id="none").status_code == 404

    async def scenario() -> httpx.Response:
        async with client_of(app_of(FakeOperator(snapshot(calibrated()), (record(),)))) as client:
            return await client.get(f"/v1/backends/chat/sweeps/{record().sweep_id}/samples")

    said = run_virtual(scenario())
    assert (said.status_code, "store.keep_samples" in said.json()["detail"]) == (404, True)


def test_the_store_of_a_service_that_does_not_run_is_exported_too(tmp_path: Path) -> None:
    async def prepare() -> SqlStore:
        store = SqlStore(SqliteDatabase(tmp_path / "store.db"), Retention())
        await store.open()
        await store.save_sweep(replace(records.sweep("s1"), samples=PACKED))
        return store

    backend = {"url": "http://h:1/v1", "model": "m", "objectives": ["ttft p99 <= 500ms"], "fallback_cap": 8}
    config = tmp_path / "calibrator.yaml"
    config.write_text(yaml.safe_dump({"store": {"path": str(tmp_path / "store.db")}, "backends": {"chat": backend}}))
    with asyncio.Runner() as runner:
        store = runner.run(prepare())
        locked = invoke("export", "s1", "-c", config)
        runner.run(store.close())
    assert "in use by another calibrator" in locked.stderr
    assert "calibrator export http://HOST" in locked.stderr
    done = invoke("export", "s1", "-c", config, "--format", "csv", "--to", tmp_path / "s1.csv")
    assert done.exit_code == 0, done.stderr
    assert len((tmp_path / "s1.csv").read_text().splitlines()) == 1 + len(SAMPLES)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("s1",), "'s1' is not the URL of a sweep."),
        (("s1", "--format", "xml"), "'xml' is not an export format. Use one of jsonl, csv."),
        (("http://127.0.0.1:1/v1/backends/a/sweeps/b",), "/samples?format=jsonl cannot be read"),
    ],
)
def test_an_export_that_cannot_be_is_one_sentence(arguments: tuple[str, ...], words: str) -> None:
    done = invoke("export", *arguments)
    assert done.exit_code in (2, 3)
    assert words in done.stderr

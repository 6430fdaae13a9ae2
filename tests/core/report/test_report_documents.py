"""The sweep document: the contract's keys, null for unknown, only finite numbers."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from support.web_fakes import level, record

from calibrator.core.records.sweep import ClassAchieved
from calibrator.core.report.documents import level_document, number, sweep_document, timestamp


def test_the_keys_of_the_contract_are_there() -> None:
    document = sweep_document(record(), cap=37)
    assert document["capacity"] == {"estimate": 41, "low": 38, "high": 44}
    assert (document["cap"], document["grade"], document["requests"]) == (37, "certified", 907)
    assert (document["duration_s"], document["overload_s"]) == (299.5, 12.5)
    assert document["started_at"] == "2027-01-15T06:53:20.000Z"
    levels = document["levels"]
    assert isinstance(levels, list)
    assert [point["concurrency"] for point in levels] == [32, 44]
    wanted = {
        "concurrency", "achieved_concurrency", "n", "exceedances", "verdict", "reasons", "ttft_s", "itl_s", "tpot_s",
        "e2e_s", "requests_per_second", "output_tokens_per_second", "goodput_per_second", "errors",
    }  # fmt: skip
    assert all(wanted <= point.keys() for point in levels)


def test_a_level_with_its_quantiles() -> None:
    document = level_document(level(32))
    assert document["ttft_s"] == {
        "p50": 0.1,
        "p90": 0.2,
        "p99": None,
        "p50_interval": [0.09, 0.11],
        "p90_interval": [0.18, None],
        "p99_interval": None,
    }
    assert document["errors"] == {"reset": 2}
    assert document["achieved_concurrency"] == 31.8765


def test_what_the_curve_says_is_in_the_document() -> None:
    insight = sweep_document(record(), cap=37)["insight"]
    assert isinstance(insight, dict)
    assert (insight["goodput_max_concurrency"], insight["limit"], insight["slope"]) == (32, "failures", None)
    assert insight["words"][-1] == "What limits: requests fail: streams break, stall or time out."
    assert sweep_document(record(levels=()), cap=None)["insight"] is None


def test_achieved_lengths_stand_in_the_provenance() -> None:
    achieved = ClassAchieved("chat", 500, 100.0, 101.23456789, None, 7.0)
    provenance = replace(record().provenance, cached_ratio_achieved=0.123456789, classes_achieved=(achieved,))
    document = sweep_document(record(provenance=provenance), cap=None)["provenance"]
    assert isinstance(document, dict)
    assert document["cached_ratio_achieved"] == 0.123457
    assert document["classes_achieved"] == [
        {
            "name": "chat", "requests": 500, "prompt_tokens_wanted": 100.0, "prompt_tokens": 101.235,
            "output_tokens_wanted": None, "output_tokens": 7.0,
        }
    ]  # fmt: skip


def test_measured_levels_without_a_search_have_no_capacity_cap_or_grade() -> None:
    document = sweep_document(replace(record(), mode="levels", grade=None, capacity=None), cap=None)
    assert (document["capacity"], document["cap"], document["grade"]) == (None, None, None)


def test_the_document_is_json_whatever_was_measured() -> None:
    odd = replace(level(8), requests_per_second=math.nan, goodput_per_second=math.inf)
    text = json.dumps(sweep_document(record(levels=(odd,), outcome=None, ended_at=None), cap=None), allow_nan=False)
    assert json.loads(text)["levels"][0]["requests_per_second"] is None


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.1 + 0.2, 0.3), (1 / 3, 0.333333), (0.0, 0.0), (1234567, 1234567), (math.nan, None), (-math.inf, None)],
)
def test_numbers_have_six_digits_and_counts_all_of_theirs(value: float, shown: float | None) -> None:
    assert number(value) == shown


def test_times_are_utc() -> None:
    assert timestamp(0.0) == "1970-01-01T00:00:00.000Z"
    assert timestamp(1_800_000_000.25) == "2027-01-15T08:00:00.250Z"
    assert timestamp(None) is None

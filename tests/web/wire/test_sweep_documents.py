"""The sweep document: the contract's keys, null for unknown, only finite numbers."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError
from support.web_fakes import level, record

from calibrator.core.records.sweep import ClassAchieved, SweepRecord
from calibrator.web.wire.documents import level_document, sweep_document
from calibrator.web.wire.sweeps import SweepDocument


def printed(sweep: SweepRecord, *, cap: int | None) -> dict[str, Any]:
    return sweep_document(sweep, cap=cap).model_dump(mode="json")


def test_the_keys_of_the_contract_are_there() -> None:
    document = printed(record(), cap=37)
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
    document = level_document(level(32)).model_dump(mode="json")
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
    insight = printed(record(), cap=37)["insight"]
    assert isinstance(insight, dict)
    assert (insight["goodput_max_concurrency"], insight["limit"], insight["slope"]) == (32, "failures", None)
    assert len(insight["messages"]) == 3
    assert printed(record(levels=()), cap=None)["insight"] is None


def test_objectives_are_written_as_text_and_read_back_as_values() -> None:
    document = sweep_document(record(), cap=None)
    again = SweepDocument.model_validate_json(document.model_dump_json())
    assert again.provenance.objectives == list(record().history.objectives)
    assert json.loads(again.model_dump_json())["provenance"]["objectives"] == ["ttft p99 <= 500ms"]


def test_a_text_that_is_no_objective_is_refused_with_its_place() -> None:
    document = printed(record(), cap=None)
    document["provenance"]["objectives"] = ["soon enough"]
    with pytest.raises(ValidationError) as refused:
        SweepDocument.model_validate(document)
    assert [error["loc"] for error in refused.value.errors()] == [("provenance", "objectives", 0)]


def test_achieved_lengths_stand_in_the_provenance() -> None:
    achieved = ClassAchieved("chat", 500, 100.0, 101.23456789, None, 7.0)
    provenance = replace(record().provenance, cached_ratio_achieved=0.123456789, classes_achieved=(achieved,))
    document = printed(record(provenance=provenance), cap=None)["provenance"]
    assert isinstance(document, dict)
    assert document["cached_ratio_achieved"] == 0.123457
    assert document["classes_achieved"] == [
        {
            "name": "chat", "requests": 500, "prompt_tokens_wanted": 100.0, "prompt_tokens": 101.235,
            "output_tokens_wanted": None, "output_tokens": 7.0,
        }
    ]  # fmt: skip


def test_measured_levels_without_a_search_have_no_capacity_cap_or_grade() -> None:
    document = printed(replace(record(), mode="levels", grade=None, capacity=None), cap=None)
    assert (document["capacity"], document["cap"], document["grade"]) == (None, None, None)


def test_the_document_is_json_whatever_was_measured() -> None:
    odd = replace(level(8), requests_per_second=math.nan, goodput_per_second=math.inf)
    text = sweep_document(record(levels=(odd,), outcome=None, ended_at=None), cap=None).model_dump_json()
    assert json.loads(text)["levels"][0]["requests_per_second"] is None

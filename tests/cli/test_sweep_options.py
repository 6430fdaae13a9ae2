"""What can be known to be wrong before a request is sent is refused before a request is sent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from calibrator.cli.options import SweepOptions
from calibrator.cli.sweep import exit_code, order_from
from calibrator.core.records.sweep import SweepOutcome
from calibrator.errors import ConfigurationError, ExitCode

GOOD = SweepOptions(url="http://127.0.0.1:8000/v1/", model="m", objectives=["ttft p99 <= 500ms"])


def test_the_defaults_are_those_of_the_service() -> None:
    order = order_from(GOOD)
    assert order.target.url == "http://127.0.0.1:8000/v1"
    assert (order.bounds.requests, order.bounds.duration_s, order.bounds.overload_s) == (1800, 1200.0, 120.0)
    assert order.levels == ()


def test_levels_are_measured_with_two_hundred_requests_unless_told() -> None:
    order = order_from(replace(GOOD, levels="8, 32,64"))
    assert (order.levels, order.requests_per_level) == ((8, 32, 64), 200)
    assert order_from(replace(GOOD, levels="8", requests=50)).requests_per_level == 50


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"url": "localhost:8000"}, "not an HTTP URL"),
        ({"objectives": ["ttft p99 500"]}, "not an objective"),
        ({"api": "responses"}, "not an API kind"),
        ({"min_level": 0}, "impossible"),
        ({"min_level": 9, "max_level": 8}, "impossible"),
        ({"levels": "8,x"}, "not a list of levels"),
        ({"levels": "0,8"}, "start at 1"),
        ({"levels": "8,8"}, "twice"),
        ({"requests": 0}, "impossible"),
        ({"requests": 20}, "certif"),  # a budget that can never certify a P99
        ({"duration": "soon"}, "not a duration"),
        ({"safety_margin_ratio": 1.0}, "ratio"),
        ({"stream": False}, "without streaming"),
        ({"api_key_env": "NO_SUCH_VARIABLE"}, "not set"),
        ({"api_key_file": Path("/no/such/file")}, "cannot be read"),
        ({"output_tokens": 0}, "impossible"),
        ({"trace": Path("/no/such/file")}, "cannot be read"),
        ({"prefix_reuse_ratio": 1.0}, "prefix reuse"),
        ({"url": "http://host/v1?api-version=1&key=s3cret"}, "holds a secret in its query: key"),
        ({"metrics_url": "http://host/metrics?token=s3cret"}, "holds a secret in its query: token"),
        ({"api_key_in": "cookie"}, "not a place for a key"),
        ({"api_key_in": "header:Host"}, "not a place for a key"),
        ({"header_env": ("X-Org=NO_SUCH_VARIABLE",)}, "not set"),
        ({"header_env": ("Content-Length=PATH",)}, "sets itself"),
        ({"header_env": ("a b=PATH",)}, "not the name of a header"),
    ],
)
def test_impossible_options_are_refused(change: dict[str, object], cause: str) -> None:
    with pytest.raises(ConfigurationError, match=cause) as caught:
        order_from(replace(GOOD, **change))  # type: ignore[arg-type] # a table of keyword arguments
    assert caught.value.remedy or "." in caught.value.cause


def test_a_trace_replaces_the_lengths(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"prompt_tokens": 900, "output_tokens": 3}\n')
    workload = order_from(replace(GOOD, trace=tmp_path / "t.jsonl", prefix_reuse_ratio=0.5)).workload
    assert (workload.classes[0].sizes, workload.prefix_reuse_ratio) == (((900, 3),), 0.5)
    (tmp_path / "t.jsonl").write_text('{"prompt_tokens": 900, "output_tokens": 3, "stream": false}\n')
    with pytest.raises(ConfigurationError, match="without streaming"):
        order_from(replace(GOOD, trace=tmp_path / "t.jsonl"))


def test_a_query_stays_and_keys_and_headers_go_where_they_are_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY", "k-1234")
    monkeypatch.setenv("ORG", "org-1234")
    url = "https://host/openai/deployments/m/?api-version=2024-10-21"
    azure = replace(
        GOOD, url=url, api_key_env="KEY", api_key_in="header:api-key", header_env=("OpenAI-Organization=ORG",)
    )
    target = order_from(azure).target
    assert target.url == "https://host/openai/deployments/m?api-version=2024-10-21"
    assert target.credentials == (("api-key", "k-1234"), ("OpenAI-Organization", "org-1234"))
    assert target.secrets == ("k-1234", "org-1234")
    assert "1234" not in repr(target)
    target = order_from(replace(GOOD, api_key_env="KEY", api_key_in="query:key")).target
    assert (target.credentials, target.key_query) == ((), "key=k-1234")


def test_long_prompts_are_cut_whatever_the_workload_is_made_of(tmp_path: Path) -> None:
    order = order_from(replace(GOOD, prompt_sigma=1.0, max_prompt_tokens=1000))
    assert order.workload.longest_prompt_tokens == 1000
    trace = tmp_path / "t.jsonl"
    trace.write_text('{"prompt_tokens": 3000, "output_tokens": 8}\n{"prompt_tokens": 30, "output_tokens": 8}\n')
    order = order_from(replace(GOOD, trace=trace, max_prompt_tokens=1000))
    assert order.workload.longest_prompt_tokens == 1000
    assert "cut at 1000 (0.5 of them)" in str(order.workload)


def test_the_api_key_comes_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key").write_text("from-file\n")
    monkeypatch.setenv("KEY", "from-environment")
    assert order_from(replace(GOOD, api_key_file=tmp_path / "key")).target.api_key == "from-file"
    order = order_from(replace(GOOD, api_key_env="KEY"))
    assert order.target.api_key == "from-environment"
    assert "from-environment" not in repr(order)


@pytest.mark.parametrize(
    ("outcome", "code"),
    [(SweepOutcome.CALIBRATED, 0), (SweepOutcome.INCONCLUSIVE, 4), (SweepOutcome.INFEASIBLE, 5),
     (SweepOutcome.INTERRUPTED, 130), (SweepOutcome.CANCELLED, 130), (SweepOutcome.ERROR, 3)],
)  # fmt: skip
def test_exit_codes(outcome: SweepOutcome, code: int) -> None:
    from support.sweep_entries import order, record_of

    record = replace(record_of(order(), outcome), error_exit_code=int(ExitCode.UNREACHABLE))
    assert exit_code(record) == code

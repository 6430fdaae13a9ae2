"""`calibrator simulate`: the JSON contract, the table, and the replay of a recorded sweep."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter
from support.records import sweep as stored_sweep
from support.synthetic import Player, Synthetic, logistic, run_sweep
from typer.testing import CliRunner

from calibrator.cli.app import app
from calibrator.cli.options import SimulateOptions
from calibrator.cli.simulate import read_history, replay, replayed, simulate
from calibrator.core.records.history import Bounds, History
from calibrator.core.search.steps import Conclusion
from calibrator.errors import ConfigurationError
from calibrator.web.wire.documents import sweep_document

OPTIONS = SimulateOptions(backends=6, seed=2, output="json", workers=1)
KEYS = {
    "requests_mean",
    "minutes_median",
    "error_median_ratio",
    "within_15pct_ratio",
    "unsafe_ratio",
    "over_twice_allowance_ratio",
    "requests_above_ratio",
    "seconds_above_mean",
    "seconds_hard_mean",
    "highest_probed_p95",
}


def document(options: SimulateOptions, capsys: pytest.CaptureFixture[str]) -> dict[str, list[dict[str, object]]]:
    simulate(options)
    return json.loads(capsys.readouterr().out)


def test_json_has_one_object_per_policy_and_group(capsys: pytest.CaptureFixture[str]) -> None:
    found = document(replace(OPTIONS, families="all", recalibrations=1, backends=12), capsys)["results"]
    named = [(each["policy"], each["group"]) for each in found]
    assert len(named) == len(set(named)) == 8
    for each in found:
        assert set(each) >= KEYS | {"policy", "group", "sweeps", "intervals"}
        assert set(each["intervals"]) >= KEYS


def test_the_table_does_not_depend_on_the_workers(capsys: pytest.CaptureFixture[str]) -> None:
    assert document(OPTIONS, capsys)["results"] == document(replace(OPTIONS, workers=2), capsys)["results"]


def test_the_printed_table_names_its_seed_and_explains_its_columns(capsys: pytest.CaptureFixture[str]) -> None:
    simulate(replace(OPTIONS, output="table", stress="falling"))
    out = capsys.readouterr().out
    assert "6 synthetic backends, seed 2, stress: falling" in out
    assert "doubling and bisection" in out
    assert "95 % intervals" in out


@pytest.mark.parametrize("wrong", [{"families": "some"}, {"output": "xml"}, {"stress": "much"}, {"backends": 0}])
def test_unknown_options_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        simulate(replace(OPTIONS, **wrong))  # type: ignore[arg-type]  # a table of wrong values


def test_the_verb_exits_with_the_code_of_a_configuration_error() -> None:
    assert CliRunner().invoke(app, ["simulate", "--families", "none"]).exit_code == 2


# --------------------------------------------------------------------------------------------------------------- replay
@pytest.fixture
def recorded(tmp_path: Path) -> tuple[Path, History]:
    player = Player(Synthetic(logistic(20.0), np.random.default_rng(1)))
    _, history = run_sweep(player)
    file = tmp_path / "sweep.json"
    file.write_bytes(TypeAdapter(History).dump_json(history))
    return file, history


def test_a_recorded_sweep_is_replayed_step_by_step(recorded: tuple[Path, History]) -> None:
    file, history = recorded
    assert read_history(file) == (history, Bounds())
    steps = replayed(history, Bounds())
    assert [step.level for step in steps[:-1]] == [stage.level for stage in history.stages]
    assert isinstance(steps[-1], Conclusion)


def test_the_replay_is_printed(recorded: tuple[Path, History], capsys: pytest.CaptureFixture[str]) -> None:
    file, history = recorded
    replay(file, "json")
    printed = json.loads(capsys.readouterr().out)
    assert [each["measured"] for each in printed] == [*(stage.level for stage in history.stages), None]
    assert printed[-1]["ends"]
    replay(file, "table")
    out = capsys.readouterr().out
    assert "ramp: start at 2" in out
    assert "capacity" in out


def test_a_history_inside_a_stored_sweep_is_found(recorded: tuple[Path, History], tmp_path: Path) -> None:
    file, history = recorded
    wrapped = tmp_path / "record.json"
    wrapped.write_text(json.dumps({"sweep_id": "x", "history": json.loads(file.read_text())}))
    assert read_history(wrapped) == (history, Bounds())


def test_a_sweep_as_the_command_line_prints_it_is_replayed_under_its_own_bounds(
    recorded: tuple[Path, History], tmp_path: Path
) -> None:
    full, bounds = stored_sweep(), Bounds(max_level=33, overload_s=7.0)
    record = replace(full, history=read_history(recorded[0])[0], provenance=replace(full.provenance, bounds=bounds))
    printed = tmp_path / "printed.json"
    printed.write_text(sweep_document(record, cap=None).model_dump_json())
    assert read_history(printed) == (record.history, bounds)


def test_a_history_of_another_version_is_refused(recorded: tuple[Path, History], tmp_path: Path) -> None:
    other = json.loads(recorded[0].read_text()) | {"version": 99}
    file = tmp_path / "other.json"
    file.write_text(json.dumps(other))
    with pytest.raises(ConfigurationError, match="version 99"):
        read_history(file)
    assert CliRunner().invoke(app, ["simulate", "--replay", str(file)]).exit_code == 2


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"history": {"objectives": 3}}'])
def test_what_is_no_history_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "odd.json"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=r"odd\.json"):
        read_history(file)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_history(tmp_path / "missing.json")

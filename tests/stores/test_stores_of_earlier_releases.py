"""A store that an earlier release wrote opens, tells what changed in it, and means what it meant.

`fixtures/stores` holds dumps (SQL text) of SQLite files, each written by the code of its revision.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest
import structlog
from support.records import recommendation, sweep

from calibrator.core.publish.snapshot import CapBeforeCut, Override, State
from calibrator.core.records.history import HISTORY_VERSION
from calibrator.core.sharing.allocator import HeldShare
from calibrator.ports.store import Retention
from calibrator.stores.sql_store import SqlStore
from calibrator.stores.sqlite import BUSY_TIMEOUT_MS, SqliteDatabase

T = TypeVar("T")
DUMP = Path(__file__).parents[1] / "fixtures" / "stores" / "revision_0005.sql"


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    path = tmp_path / "calibrator.db"
    connection = sqlite3.connect(path)
    connection.executescript(DUMP.read_text())
    connection.close()
    return path


def with_store(path: Path, ask: Callable[[SqlStore], Awaitable[T]]) -> T:
    async def run() -> T:
        store = SqlStore(SqliteDatabase(path, BUSY_TIMEOUT_MS), Retention())
        await store.open()
        try:
            return await ask(store)
        finally:
            await store.close()

    return asyncio.run(run())


def test_the_cap_that_was_served_is_served_again_with_the_one_before_its_cut(earlier: Path) -> None:
    (newest,) = with_store(earlier, lambda store: store.latest_recommendations())
    assert (newest.cap, newest.state, newest.version) == (24, State.GUARDED, 2)
    assert newest.before_cut == CapBeforeCut(32, 32, State.CALIBRATED, 1500.0)
    assert newest.rates == recommendation().rates


def test_a_sweep_keeps_its_stages_and_what_it_began_with(earlier: Path) -> None:
    kept = with_store(earlier, lambda store: store.sweep("s1"))
    assert kept is not None
    assert kept.levels == sweep().levels
    assert kept.history.version == HISTORY_VERSION
    first, second = kept.history.stages
    assert first == sweep().history.stages[0]
    assert second.level_lost == "live traffic changed by 6 requests at its end"
    assert kept.history.warm is not None
    assert kept.history.warm.sweeps_since_upward_probe == 2
    assert kept.history.warm.stages == (second,)


def test_shares_pins_checkpoints_and_commands_are_still_there(earlier: Path) -> None:
    assert with_store(earlier, lambda store: store.shares("chat", per_replica=False)) == [
        HeldShare("envoy-0", 16, 5.0),
        HeldShare("envoy-1", 16, 7.5),
    ]
    assert with_store(earlier, lambda store: store.overrides()) == {
        "chat": Override(20, "maintenance", "ops", 1000.0, 99_000.0)
    }
    assert with_store(earlier, lambda store: store.memories("chat")) == {"triggers": '{"cooling":{"restart":1200.0}}'}
    (command,) = with_store(earlier, lambda store: store.take_wishes(["chat"]))
    assert command.lowered is not None
    assert command.lowered.before_cut is not None


def test_it_is_told_which_words_changed_in_how_many_documents(earlier: Path) -> None:
    with structlog.testing.capture_logs() as logs:
        with_store(earlier, lambda store: store.overrides())
    (told,) = [entry for entry in logs if entry["event"] == "stored documents renamed"]
    assert told["names"]["visits"] == "stages"
    assert told["documents"] == {"recommendations": 2, "sweeps": 2, "wishes": 1, "share_reports": 1}


def test_a_second_start_changes_nothing_more(earlier: Path) -> None:
    first = with_store(earlier, lambda store: store.sweep("s1"))
    with structlog.testing.capture_logs() as logs:
        assert with_store(earlier, lambda store: store.sweep("s1")) == first
    assert [entry for entry in logs if entry["event"] == "stored documents renamed"] == []

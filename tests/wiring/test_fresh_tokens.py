"""Tokens follow their files: a rotated one works within a second, a lost one after a short grace no longer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from structlog.testing import capture_logs
from support.virtual_time import run_virtual

from calibrator.clock import LoopClock
from calibrator.errors import ConfigurationError
from calibrator.settings import Settings, backend_plans, load_settings
from calibrator.wiring.server.fresh_tokens import FRESH_S, GRACE_S, FreshTokens

FIRST, SECOND = "the-first-token", "the-second-token"


def settings_with(folder: Path, **auth: Any) -> Settings:
    backend = {"url": "http://x/v1", "model": "m", "objectives": ["ttft p99 <= 500ms"], "fallback_cap": 8}
    config = folder / "calibrator.yaml"
    config.write_text(yaml.safe_dump({"backends": {"chat": backend}, "auth": auth}))
    return load_settings(config, {})


def on_tokens(folder: Path, scenario: Callable[[FreshTokens], Awaitable[None]], **auth: Any) -> list[Any]:
    """The log lines."""

    async def run() -> None:
        await scenario(FreshTokens(settings_with(folder, **auth), {"READ": "token-of-readers"}, LoopClock()))

    with capture_logs() as lines:
        run_virtual(run())
    return list(lines)


def test_a_rotated_file_works_within_a_second(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{FIRST}\n")

    async def scenario(tokens: FreshTokens) -> None:
        assert (tokens.operator(), tokens.read()) == ((FIRST,), ("token-of-readers",))
        file.write_text(f"{SECOND}\n")
        assert tokens.operator() == (FIRST,), "not read for each request"
        await asyncio.sleep(FRESH_S)
        assert tokens.operator() == (SECOND,)

    assert on_tokens(tmp_path, scenario, operator_tokens=[{"file": str(file)}], read_tokens=[{"env": "READ"}]) == []


def test_several_are_valid_at_once_so_that_one_can_be_rotated(tmp_path: Path) -> None:
    files = [tmp_path / "old", tmp_path / "new"]
    for file, text in zip(files, (FIRST, SECOND), strict=True):
        file.write_text(text)

    async def scenario(tokens: FreshTokens) -> None:
        assert tokens.operator() == (FIRST, SECOND)

    on_tokens(tmp_path, scenario, operator_tokens=[{"file": str(file)} for file in files])


@pytest.mark.parametrize("damage", ["missing", "empty", "short", "folder"])
def test_a_lost_token_goes_on_for_a_grace_and_is_then_nobodys(damage: str, tmp_path: Path) -> None:
    """And the door stays shut: no token at all would open reading to everybody."""
    file = tmp_path / "token"
    file.write_text(FIRST)

    async def scenario(tokens: FreshTokens) -> None:
        assert tokens.read() == (FIRST,)
        file.unlink()
        match damage:
            case "empty":
                file.write_text("\n")
            case "short":
                file.write_text("short")
            case "folder":
                file.mkdir()
        await asyncio.sleep(FRESH_S)
        assert tokens.read() == (FIRST,), "in the middle of a rotation nobody is turned away"
        await asyncio.sleep(GRACE_S + FRESH_S)
        [stand_in] = tokens.read()
        assert stand_in not in {FIRST, "", "short"}
        assert len(stand_in) == 64
        if damage != "folder":
            file.write_text(SECOND)
            await asyncio.sleep(FRESH_S)
            assert tokens.read() == (SECOND,), "a restart is not needed"

    lines = on_tokens(tmp_path, scenario, read_tokens=[{"file": str(file)}])
    assert [line["event"] for line in lines] == ["a token is lost"], "said once, at once"
    assert "auth.read_tokens[0]" in lines[0]["reason"]
    assert FIRST not in str(lines)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "empty"),
        ("\n", "empty"),
        ("eleven-char", "a token of only 11 characters, which could be guessed. Use at least 12"),
    ],
)
def test_a_token_that_protects_nothing_is_refused_at_the_start(content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(content)
    settings = settings_with(tmp_path, operator_tokens=[{"file": str(tmp_path / "token")}])
    with pytest.raises(ConfigurationError, match=words) as caught:
        backend_plans(settings, {})
    assert "auth.operator_tokens[0]" in str(caught.value)
    assert not content.strip() or content not in str(caught.value)


def test_readers_must_not_hold_the_operators_token(tmp_path: Path) -> None:
    settings = settings_with(tmp_path, operator_tokens=[{"env": "A"}], read_tokens=[{"env": "B"}])
    with pytest.raises(ConfigurationError, match=r"auth.read_tokens: contains an operator token") as caught:
        backend_plans(settings, {"A": FIRST, "B": FIRST})
    assert FIRST not in str(caught.value)

"""Tokens are read at most once a second, and a rotated file works from then on."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import yaml
from support.virtual_time import run_virtual

from calibrator.clock import LoopClock
from calibrator.errors import ConfigurationError
from calibrator.settings import load_settings
from calibrator.wiring.fresh_tokens import FRESH_S, FreshTokens


def test_a_rotated_file_works_within_a_second(tmp_path: Path) -> None:
    token, config = tmp_path / "token", tmp_path / "calibrator.yaml"
    token.write_text("first\n")
    backend = {"url": "http://x/v1", "model": "m", "objectives": ["ttft p99 <= 500ms"], "fallback_cap": 8}
    auth = {"operator_tokens": [{"file": str(token)}]}
    config.write_text(yaml.safe_dump({"backends": {"chat": backend}, "auth": auth}))

    async def scenario() -> None:
        tokens = FreshTokens(load_settings(config, {}), {}, LoopClock())
        assert (tokens.operator(), tokens.read()) == (("first",), ())
        token.write_text("second\n")
        assert tokens.operator() == ("first",), "not read for each request"
        await asyncio.sleep(FRESH_S)
        assert tokens.operator() == ("second",)
        token.unlink()
        await asyncio.sleep(FRESH_S)
        with pytest.raises(ConfigurationError, match="cannot be read"):
            tokens.operator()

    run_virtual(scenario())

"""The looks before a sweep find nothing to say about a real engine, whose prefix cache is on."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from support.llamacpp import MODEL_NAME, llama_server
from support.quiet_machine import real_time

from calibrator.backends.openai_inspector import OpenAIInspector
from calibrator.core.workload.classes import Workload
from calibrator.ports.sweeps import Target

pytestmark = pytest.mark.engine


@real_time
def test_a_real_engine_with_a_prefix_cache_is_no_suspect(tiny_model: Path) -> None:
    with llama_server(model=tiny_model, slots=4) as engine:
        inspector = OpenAIInspector(Target(engine.api_url, MODEL_NAME), now=time.monotonic)
        started_s = time.monotonic()
        found = [asyncio.run(inspector.inspect(Workload())).warnings for _ in range(5)]
        took_s = (time.monotonic() - started_s) / 5
    assert not [warning for warnings in found for warning in warnings if warning.startswith("suspect")]
    assert took_s < 10.0

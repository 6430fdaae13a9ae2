"""The model of the real engine, generated once a session."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.tiny_model import TINY, write_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("tiny") / "tiny.gguf", TINY)

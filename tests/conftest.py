"""Fixtures of the whole suite: parts that are dear to start and can be shared, because each test has its own corner."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.postgres_process import PostgresProcess, postgres


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresProcess]:
    """Take a `new_database` of it; never stop it: see `support.postgres_process` for one of your own."""
    with postgres() as server:
        yield server

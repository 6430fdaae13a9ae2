"""Fixtures of the whole suite: parts that are dear to start and can be shared, because each test has its own corner."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from support.postgres_process import PostgresProcess, postgres

# How long an example takes says how busy the machine is, and nothing about the property.
settings.register_profile("any_machine", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any_machine")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresProcess]:
    """Take a `new_database` of it; never stop it: see `support.postgres_process` for one of your own."""
    with postgres() as server:
        yield server

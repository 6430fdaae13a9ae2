"""Several calibrators' stores on one PostgreSQL, in one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from calibrator.ports.store import Lease, Retention
from calibrator.stores.postgresql import PostgresDatabase
from calibrator.stores.sql_store import SqlStore
from support.postgres_process import PostgresProcess

SECONDS = 10.0  # nothing may last longer, whatever the server does


def store_at(url: str, ca_file: str | None = None) -> SqlStore:
    return SqlStore(PostgresDatabase(lambda: url, ca_file), Retention())


@asynccontextmanager
async def instances(server: PostgresProcess, name: str, number: int = 2) -> AsyncIterator[list[SqlStore]]:
    """Open, all at the same time; at the end nothing of them is left."""
    stores = [store_at(server.url(name)) for _ in range(number)]
    await asyncio.gather(*(store.open() for store in stores))
    try:
        yield stores
    finally:
        await asyncio.gather(*(store.close() for store in stores))
        assert len(asyncio.all_tasks()) == 1, "nothing is left running"


async def take(store: SqlStore, holder: str = "a", lease_s: float = 60.0) -> Lease:
    lease = await store.leases.acquire("chat", holder, lease_s)
    assert lease is not None
    return lease

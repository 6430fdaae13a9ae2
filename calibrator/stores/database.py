"""What differs between the dialects: everything else in this package is written once, over this.

Statements are SQLAlchemy's; a dialect gives transactions with its errors translated, its clock, its insert that can
give way to a row that exists, and the notice of what other instances wrote.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeAlias

from sqlalchemy import ColumnElement, Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

Insert: TypeAlias = sqlite.Insert | postgresql.Insert  # each with `on_conflict_do_update`


class Database(Protocol):
    """One database and the way to it. Every method raises StoreError when it fails, never the driver's exception."""

    @property
    def name(self) -> str:
        """For messages: the file, or database and host; never a password. Raises ConfigurationError."""
        ...

    @property
    def now_s(self) -> ColumnElement[float]:
        """The database's own clock, Unix seconds; read when the row is at hand, not when the transaction began."""
        ...

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def revision(self) -> str | None:
        """Of the schema; None: nothing was ever stored. Needs no `open`, and changes nothing."""
        ...

    def reading(self) -> AbstractAsyncContextManager[AsyncConnection]: ...

    def writing(self, *, is_news: bool = True, is_urgent: bool = False) -> AbstractAsyncContextManager[AsyncConnection]:
        """A transaction, committed at the block's end. `is_news`: the other instances are notified; `is_urgent`:
        it waits behind no other transaction of this instance."""
        ...

    def insert(self, table: Table) -> Insert: ...

    async def changed(self, limit_s: float) -> None:
        """As `ports.Store.changed`."""
        ...

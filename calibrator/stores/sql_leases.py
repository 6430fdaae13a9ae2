"""Leases as rows: each step is one statement, so there is no moment between checking and taking.

    acquire   insert the row, or take the one there is if it is released, expired or ours: epoch + 1
    renew     move the expiry while holder and epoch are still ours, expired or not: nobody was quicker
    release   empty the holder; the row stays, because epochs never repeat

Whether an insert stands in time is for the database alone to decide: by its clock, read once the row is locked.
"""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import ColumnElement, Update, and_, select

from calibrator.ports.store import Lease
from calibrator.stores.database import Database
from calibrator.stores.schema import leases


def in_force(lease: Lease) -> ColumnElement[bool]:
    """Nobody has taken the lease since."""
    return and_(leases.c.engine_group == lease.group, leases.c.holder == lease.holder, leases.c.epoch == lease.epoch)


class SqlLeases:
    """Port `Leases`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def acquire(self, group: str, holder: str, lease_s: float) -> Lease | None:
        expires_at = self._database.now_s + lease_s
        is_free = (leases.c.holder == "") | (leases.c.holder == holder) | (leases.c.expires_at < self._database.now_s)
        statement = (
            self._database.insert(leases)
            .values(engine_group=group, holder=holder, epoch=1, expires_at=expires_at)
            .on_conflict_do_update(
                index_elements=["engine_group"],
                set_={"holder": holder, "epoch": leases.c.epoch + 1, "expires_at": expires_at},
                where=is_free,
            )
            .returning(leases.c.epoch)
        )
        async with self._database.writing(is_urgent=True) as connection:
            epoch = await connection.scalar(statement)
        return None if epoch is None else Lease(group, holder, epoch)

    async def renew(self, lease: Lease, lease_s: float) -> bool:
        return await self._change(lease, leases.update().values(expires_at=self._database.now_s + lease_s))

    async def release(self, lease: Lease) -> None:
        await self._change(lease, leases.update().values(holder="", expires_at=0.0), is_news=True)

    async def holders(self) -> Mapping[str, str]:
        held = select(leases.c.engine_group, leases.c.holder).where(
            leases.c.holder != "", leases.c.expires_at >= self._database.now_s
        )
        async with self._database.reading() as connection:
            return dict((await connection.execute(held)).all())

    async def _change(self, lease: Lease, update: Update, *, is_news: bool = False) -> bool:
        async with self._database.writing(is_news=is_news, is_urgent=True) as connection:
            return (await connection.execute(update.where(in_force(lease)))).rowcount == 1

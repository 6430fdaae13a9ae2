"""Which store the settings ask for."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from calibrator.core.publish.lease import SOLE, LeasePolicy
from calibrator.ports.store import Retention
from calibrator.settings import Settings, database_url
from calibrator.stores.database import Database
from calibrator.stores.migrate import head as newest_schema
from calibrator.stores.postgresql import PostgresDatabase
from calibrator.stores.sql_store import SqlStore
from calibrator.stores.sqlite import SqliteDatabase

__all__ = ["make_database", "make_store", "newest_schema"]


def make_store(settings: Settings, environ: Mapping[str, str]) -> SqlStore:
    """Not open yet."""
    store = settings.store
    keep = Retention(store.keep_sweeps, store.keep_recommendations, store.keep_samples)
    return SqlStore(make_database(settings, environ), keep)


def lease_policy(settings: Settings) -> LeasePolicy:
    """A file is locked by one service; a server has many."""
    return SOLE if settings.store.path is not None else LeasePolicy(settings.store.lease_s)


def make_database(settings: Settings, environ: Mapping[str, str]) -> Database:
    """Not open yet. The URL's secret is read at each new connection, which follows its rotation."""
    store = settings.store
    if store.path is not None:
        return SqliteDatabase(store.path, moves_damaged=store.on_corrupt == "move_aside")
    ca_file = None if store.ca_file is None else str(store.ca_file)
    return PostgresDatabase(partial(_url, settings, environ), ca_file)


def _url(settings: Settings, environ: Mapping[str, str]) -> str:
    return database_url(settings, environ) or ""  # the settings say that there is one

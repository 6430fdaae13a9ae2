"""`calibrator export`: the individual requests of a sweep, from a running service or from the database."""

from __future__ import annotations

import os
from pathlib import Path

from calibrator.cli.report import fetched, token_in, write_text
from calibrator.core.records.sample_log import unpack
from calibrator.errors import ConfigurationError, StoreLockedError
from calibrator.settings import load_settings
from calibrator.web.api.sample_export import TYPES, export_samples
from calibrator.wiring.stores import make_store

NOT_KEPT = "Only the latest sweeps keep them (store.keep_samples); cancelled and interrupted ones do not."


async def export(source: str, kind: str, config: Path | None, to: Path | None, token_env: str | None) -> int:
    """`source`: URL of a sweep in a service, or with `config` its ID. Raises ConfigurationError, StoreError."""
    if kind not in TYPES:
        raise ConfigurationError(f"'{kind}' is not an export format.", f"Use one of {', '.join(TYPES)}.")
    if source.startswith(("http://", "https://")):
        remedy = f"Use the URL of a sweep. {NOT_KEPT}"
        text = fetched(f"{source.rstrip('/')}/samples?format={kind}", token_in(token_env), remedy)
    elif config is None:
        raise ConfigurationError(f"'{source}' is not the URL of a sweep.", "Use one, or --config to read the database.")
    else:
        text = await _stored(source, kind, config)
    write_text(text, to)
    return 0


async def _stored(sweep_id: str, kind: str, config: Path) -> str:
    store = make_store(load_settings(config, os.environ), os.environ)
    try:
        await store.open()
    except StoreLockedError as error:
        address = "Ask the running service: calibrator export http://HOST:PORT/v1/backends/NAME/sweeps/ID"
        raise StoreLockedError(error.cause, address) from None
    try:
        packed = await store.samples(sweep_id)
    finally:
        await store.close()
    if packed is None:
        raise ConfigurationError(f"The database has no samples of a sweep '{sweep_id}'.", NOT_KEPT)
    return export_samples(unpack(packed), sweep_id, kind)

"""Domain values to JSON text and back, by pydantic over the frozen dataclasses: no second description of them.

Infinities and NaN are legal floats in a record; JSON has none, so they travel as strings ("Infinity").
A document that does not fit is refused, never repaired: it was written by another release, or damaged.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from calibrator.core.publish.snapshot import Override, Recommendation
from calibrator.core.records.sweep import SweepRecord
from calibrator.core.sharing.share_cache import InstanceReport, ShareTable
from calibrator.errors import ConfigurationError, StoreError
from calibrator.ports.store import ForwardedCommand, SweepStatus

T = TypeVar("T")


class Codec(Generic[T]):
    """One kind of document."""

    def __init__(self, kind: type[T]) -> None:
        self._adapter = TypeAdapter(kind)
        self._name = kind.__name__

    def write(self, value: T) -> str:
        return to_json(value, inf_nan_mode="strings").decode()

    def read(self, text: str) -> T:
        try:
            return self._adapter.validate_json(text)
        except (ValidationError, ConfigurationError) as error:  # the latter: a history of another version
            first = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error.cause
            raise StoreError(
                f"A stored {self._name} cannot be read ({first}).",
                "Run the release that wrote it, or move the store's file away to start afresh.",
            ) from error


RECOMMENDATION = Codec(Recommendation)
SWEEP = Codec(SweepRecord)
OVERRIDE = Codec(Override)
SWEEP_STATUS = Codec(SweepStatus)
COMMAND = Codec(ForwardedCommand)
SHARE_REPORT = Codec(InstanceReport)
SHARE_TABLE = Codec(ShareTable)

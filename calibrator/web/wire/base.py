"""Documents are described once, by their pydantic models: fields, nullability and how values are written.

A document is read from a core value by attribute names (`from_attributes`), and nested documents likewise; the types
here write what JSON has no type for. `projected` adds what has another name there, or is derived.

The types also read what they have written, for sweeps that come from a file.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema

from calibrator.core.records.objective import Objective, parse_objective
from calibrator.core.report.formats import number, timestamp
from calibrator.errors import ConfigurationError


class Wire(BaseModel):
    """A document that we send: exact, immutable."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, from_attributes=True)


Document = TypeVar("Document", bound=Wire)


def projected(model: type[Document], *sources: object, **derived: object) -> Document:
    """Each field from `derived`, or else from the first of the sources that has an attribute of its name."""
    found = {
        name: getattr(source, name)
        for source in reversed(sources)
        for name in model.model_fields
        if name not in derived and hasattr(source, name)
    }
    return model.model_validate({**found, **derived})


def _time(value: object) -> object:
    return timestamp(value) if isinstance(value, int | float) else value


def _number(value: object) -> object:
    return number(value) if isinstance(value, float) else value


def _objective(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return parse_objective(value)
    except ConfigurationError as error:
        raise ValueError(str(error)) from None


def _null_if_empty(value: object) -> object:
    return value or None


Time = Annotated[
    str, BeforeValidator(_time), Field(json_schema_extra={"format": "date-time"}, description="RFC 3339, UTC")
]
Number = Annotated[float, BeforeValidator(_number)]  # six significant digits
NumberOrNull = Annotated[float | None, BeforeValidator(_number)]  # null also for what is not finite
TextOrNull = Annotated[str | None, BeforeValidator(_null_if_empty)]  # null for an empty text
Interval = Annotated[list[NumberOrNull], Field(min_length=2, max_length=2, description="[low, high], 95 %")]
ObjectiveText = Annotated[
    Objective,
    BeforeValidator(_objective),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "description": "such as `ttft p99 <= 500ms`"}),
]

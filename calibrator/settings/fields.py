"""Walks the tree of settings models by path, for messages and the generated reference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo


def key_of(name: str, field: FieldInfo) -> str:
    """The key as it is written in the file."""
    return field.alias or name


def keys(model: type[BaseModel]) -> dict[str, FieldInfo]:
    return {key_of(name, field): field for name, field in model.model_fields.items()}


def inner_model(annotation: Any) -> type[BaseModel] | None:
    """The model behind `M`, `M | None`, `tuple[M, ...]` and `dict[str, M]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for part in get_args(annotation) if (model := inner_model(part)) is not None), None)


def is_named(annotation: Any) -> bool:
    """A mapping whose keys the user chooses."""
    return get_origin(annotation) is dict


def _steps(root: type[BaseModel], location: Sequence[str | int]) -> Iterator[tuple[type[BaseModel], FieldInfo | None]]:
    """The model and field reached after each key of `location`; list indices and chosen names are skipped."""
    model: type[BaseModel] | None = root
    chosen_name = False
    for part in location:
        if chosen_name or isinstance(part, int):
            chosen_name = False
            continue
        field = None if model is None else keys(model).get(part)
        if model is None or field is None:
            return
        inner = inner_model(field.annotation)
        yield (inner or model), field
        model, chosen_name = inner, is_named(field.annotation)


def field_at(root: type[BaseModel], location: Sequence[str | int]) -> FieldInfo | None:
    return next((field for _, field in reversed([*_steps(root, location)])), None)


def children(root: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """Valid keys of the mapping at `location`."""
    model = next((model for model, _ in reversed([*_steps(root, location)])), root)
    return sorted(keys(model))

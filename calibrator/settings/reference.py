"""The configuration reference, generated from the tree: no key can exist without a description."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from calibrator.settings.fields import inner_model, is_named, keys
from calibrator.settings.tree import Settings
from calibrator.settings.values import Secret, Word

_WORDS = {int: "whole number", float: "number", bool: "true or false", str: "text", Path: "path"}


def reference_markdown() -> str:
    """A Markdown table with one row per key, in the order of the file."""
    head = ("| key | type | default | meaning |", "|---|---|---|---|")
    return "\n".join([*head, *_rows(Settings, "")]) + "\n"


def _rows(model: type[BaseModel], prefix: str) -> Iterator[str]:
    defaults = _defaults(model)
    for key, field in keys(model).items():
        inner = inner_model(field.annotation)
        nested = inner is not None and inner is not Secret
        default = "" if nested and not field.is_required() else _default(field, defaults.get(key))
        yield f"| `{prefix}{key}` | {_type(field.annotation, field.metadata)} | {default} | {field.description} |"
        if inner is not None and nested:
            yield from _rows(inner, f"{prefix}{key}{_step(field.annotation)}.")


def _step(annotation: Any) -> str:
    if is_named(annotation):
        return ".<name>"
    return "[]" if get_origin(annotation) is tuple else ""


def _defaults(model: type[BaseModel]) -> dict[str, Any]:
    """Defaults as they would be written in the file."""
    given = {name: field.default for name, field in model.model_fields.items() if not field.is_required()}
    return model.model_construct(**given).model_dump(mode="json", by_alias=True, warnings=False)


def _default(field: FieldInfo, written: Any) -> str:
    if field.default is PydanticUndefined:
        return "**required**"
    if written in (None, [], {}):
        return "none"
    if isinstance(written, bool):
        return f"`{written}`".lower()
    return f"`[{', '.join(written)}]`" if isinstance(written, list) else f"`{written}`"


def _type(annotation: Any, metadata: Sequence[Any]) -> str:
    """In words; `Annotated` and optional wrappers are ignored, a `Word` takes precedence."""
    word = next((item.text for item in metadata if isinstance(item, Word)), None)
    origin, arguments = get_origin(annotation), [part for part in get_args(annotation) if part is not NoneType]
    if word is None and hasattr(annotation, "__metadata__"):
        return _type(arguments[0], annotation.__metadata__)
    if word is None and NoneType in get_args(annotation):
        return _type(arguments[0], metadata)
    if origin is Literal:
        word = ", ".join(f"`{choice}`" for choice in arguments)
    elif origin is tuple:
        word = f"list of {_type(arguments[0], ())}"
    elif is_named(annotation):
        word = "mapping by name"
    elif inner := inner_model(annotation):
        word = "secret reference" if inner is Secret else "mapping"
    return word or " ".join(part for part in (_WORDS[annotation], _range(metadata)) if part)


def _range(metadata: Sequence[Any]) -> str:
    limits = (("from", "ge"), ("above", "gt"), ("to", "le"), ("below", "lt"))
    return " ".join(
        f"{word} {getattr(item, name):.12g}" for word, name in limits for item in metadata if hasattr(item, name)
    )

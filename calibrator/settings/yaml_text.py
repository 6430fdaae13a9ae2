"""YAML text to plain values, without the traps.

PyYAML reads YAML 1.1, where `22:00` is the number 1320, `no` is false, `010` is eight and a repeated key silently wins.
Here scalars follow YAML 1.2's core schema (null, true/false, decimal numbers; everything else is text), a repeated key
is an error, keys are text, and no tag creates objects. Merge keys (`<<`) and anchors work.

Messages state line and column but never quote the line: it may contain a secret.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable
from typing import Any, ClassVar

import yaml
from yaml.constructor import ConstructorError, SafeConstructor
from yaml.nodes import MappingNode, Node, ScalarNode

from calibrator.errors import ConfigurationError


class _Loader(yaml.SafeLoader):
    """SafeLoader with its own tables, filled below; those of the base class stay unchanged."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]  # a class table; the stub says instance
    yaml_constructors: ClassVar[dict[str | None, Any]] = {}

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001, FBT002 - PyYAML's signature
        _refuse_repeated_keys(node)
        self.flatten_mapping(node)  # merge keys
        for key, _ in node.value:
            if not isinstance(key, ScalarNode):
                raise ConstructorError(None, None, "a key must be text", key.start_mark)
            key.tag = "tag:yaml.org,2002:str"  # `8:` and `true:` are names here
        return super().construct_mapping(node, deep=deep)


def _refuse_repeated_keys(node: MappingNode) -> None:
    seen: set[str] = set()
    for key, _ in node.value:
        if not isinstance(key, ScalarNode):
            continue
        if key.value in seen:
            raise ConstructorError(None, None, f"the key '{key.value}' is repeated in one mapping", key.start_mark)
        seen.add(key.value)


def _number(kind: type[int | float]) -> Callable[[_Loader, ScalarNode], float]:
    def construct(loader: _Loader, node: ScalarNode) -> float:
        try:
            return kind(loader.construct_scalar(node))
        except ValueError:
            raise ConstructorError(None, None, f"not a usable {kind.__name__}", node.start_mark) from None

    return construct


def _truth(loader: _Loader, node: ScalarNode) -> bool:
    return str(loader.construct_scalar(node)).lower() == "true"


def _unknown(_loader: _Loader, node: Node) -> Any:
    raise ConstructorError(None, None, f"the tag {node.tag} is not supported", node.start_mark)


_SCALARS: tuple[tuple[str, str, str, Callable[..., Any]], ...] = (  # tag, pattern, first characters, constructor
    ("null", r"~|null|Null|NULL", "~nN", SafeConstructor.construct_yaml_null),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF", _truth),
    ("int", r"[-+]?[0-9]+", "-+0123456789", _number(int)),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", "-+.0123456789", _number(float)),
    ("merge", r"<<", "<", _unknown),
)
_OTHERS: tuple[tuple[str, Callable[..., Any]], ...] = (
    ("str", SafeConstructor.construct_yaml_str),
    ("seq", SafeConstructor.construct_yaml_seq),
    ("map", SafeConstructor.construct_yaml_map),
)


def _fill_tables() -> None:
    prefix = "tag:yaml.org,2002:"
    for name, pattern, first, constructor in _SCALARS:
        _Loader.add_implicit_resolver(prefix + name, re.compile(f"^(?:{pattern})$"), [*first])
        _Loader.add_constructor(prefix + name, constructor)
    _Loader.add_implicit_resolver(f"{prefix}null", re.compile(r"^$"), [""])
    for name, constructor in _OTHERS:
        _Loader.add_constructor(prefix + name, constructor)
    _Loader.add_constructor(None, _unknown)


_fill_tables()


def read_yaml(text: str, name: str) -> Any:
    """Plain values. Raises ConfigurationError with `name`, line and column."""
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader with fewer constructors
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = "" if mark is None else f", line {mark.line + 1}, column {mark.column + 1}"
        cause = f"{name}{where}: {error.problem or error.context or 'not YAML'}."
        raise ConfigurationError(cause, "Repair the YAML there.") from None
    except yaml.reader.ReaderError as error:
        cause = f"{name}, character {error.position + 1}: {error.reason}."
        raise ConfigurationError(cause, "Save the file as UTF-8 text.") from None
    except RecursionError:
        raise ConfigurationError(f"{name}: nested too deeply.", "Flatten the YAML.") from None

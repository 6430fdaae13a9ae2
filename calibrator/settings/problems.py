"""What is wrong with a configuration, as lines that a person can act on: `path.to.key: cause. Remedy.`

pydantic finds what does not fit the tree; this module puts it into words, with the nearest valid name for a typo and
the key's description for a missing value. Values are quoted only if they cannot be secrets: never below a key of
`SECRET_KEYS`, and never for an unknown key.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Never

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from calibrator.errors import ConfigurationError
from calibrator.settings.fields import children, field_at

SECRET_KEYS = frozenset({"api_key", "headers", "operator_tokens", "postgresql", "read_tokens"})
_REFUSAL = "calibrator_refusal"
RENAMED_KEYS = {"care": "limits"}  # before 0.1.0 was released; CHANGELOG has the whole table
_EMPTY = "is empty."
_SHAPES = {  # pydantic's error type: (what it is not, how to write it)
    "model_type": ("a mapping", "Write its keys below it, indented."),
    "dict_type": ("a mapping", "Write its keys below it, indented."),
    "tuple_type": ("a list", "Write it as [one, two]."),
    "string_type": ("text", "Put it in quotes."),
    "int_type": ("a whole number", "Write it like 8."),
    "int_parsing": ("a whole number", "Write it like 8."),
    "int_from_float": ("a whole number", "Write it like 8."),
    "float_type": ("a number", "Write it like 0.1."),
    "float_parsing": ("a number", "Write it like 0.1."),
    "finite_number": ("a finite number", "Write it like 0.1."),
    "path_type": ("a path", "Put it in quotes."),
    "bool_type": ("true or false", "Write true or false."),
    "bool_parsing": ("true or false", "Write true or false."),
}


@dataclass(frozen=True, slots=True)
class Problem:
    """`key` is relative to the value being checked; "" is that value itself."""

    key: str
    cause: str
    remedy: str

    def below(self, path: str) -> Problem:
        return Problem(".".join(part for part in (path, self.key) if part), self.cause, self.remedy)

    def __str__(self) -> str:
        return _one_line(" ".join(part for part in (f"{self.key}: {self.cause}", self.remedy) if part))


def refuse(*problems: Problem) -> Never:
    """For validators: pydantic adds the path of the value being checked."""
    raise PydanticCustomError(_REFUSAL, "refused", {"problems": problems})


def refuse_value(error: ConfigurationError) -> Never:
    """For validators of single values."""
    refuse(Problem("", error.cause, error.remedy))


def configuration_error(name: str, problems: Sequence[Problem]) -> ConfigurationError:
    """All problems of the source `name`, a line each."""
    if len(problems) == 1:
        only = problems[0]
        return ConfigurationError(_one_line(f"{name}: {only.key}: {only.cause}"), _one_line(only.remedy))
    lines = [f"{name} has {len(problems)} problems:", *(str(problem) for problem in problems)]
    return ConfigurationError("\n".join(lines))


def explain(root: type[BaseModel], error: ValidationError) -> list[Problem]:
    """pydantic's errors as problems, in the order of the tree."""
    found = [problem for detail in error.errors(include_url=False) for problem in _explain_one(root, detail)]
    # A list whose only entry is invalid is also reported as too short: that is not a second problem.
    explained = {one.key.rpartition("[")[0] for one in found if "[" in one.key}
    return [one for one in found if one.cause != _EMPTY or one.key not in explained]


def _explain_one(root: type[BaseModel], detail: ErrorDetails) -> Iterable[Problem]:
    location, kind, context = detail["loc"], detail["type"], detail.get("ctx", {})
    if kind == _REFUSAL:
        return [problem.below(_path(location)) for problem in context["problems"]]
    if kind == "missing":
        field = field_at(root, location)
        cause, remedy = "is missing.", f"Add it: {field.description}." if field else "Add it."
    elif kind == "extra_forbidden":
        cause, remedy = "is not a known key.", _nearest(root, location)
    elif kind == "too_short":
        cause, remedy = _EMPTY, "Add at least one."
    elif kind == "literal_error":
        cause, remedy = f"{_shown(detail)} is not a valid choice.", f"Use {context['expected']}."
    elif kind in _SHAPES:
        expected, remedy = _SHAPES[kind]
        cause = f"{_shown(detail)} is not {expected}."
    else:
        cause, remedy = f"{_shown(detail)} is not valid.", _bound(context) or f"{detail['msg']}."
    return [Problem(_path(location), cause, remedy)]


def _bound(context: Mapping[str, Any]) -> str:
    words = {"ge": "of at least", "gt": "above", "le": "of at most", "lt": "below"}
    return "".join(f"Use a number {words[key]} {limit:.12g}." for key, limit in context.items() if key in words)


def _path(location: Sequence[str | int]) -> str:
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in location if part != "[key]"]
    return "".join(parts).lstrip(".")


def _shown(detail: ErrorDetails) -> str:
    value = detail["input"]
    if any(part in SECRET_KEYS for part in detail["loc"]) or isinstance(value, list | tuple | dict):
        return "this value"
    return "nothing" if value is None else f"'{str(value)[:80]}'"


def _nearest(root: type[BaseModel], location: Sequence[str | int]) -> str:
    valid = children(root, location[:-1])
    new_name = RENAMED_KEYS.get(str(location[-1]))
    if new_name in valid:
        return f"It is now called '{new_name}'."
    near = difflib.get_close_matches(str(location[-1]), valid, n=1, cutoff=0.6)
    return f"Did you mean '{near[0]}'?" if near else f"Valid keys: {', '.join(valid)}."


def _one_line(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)

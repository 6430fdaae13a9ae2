"""Writes the generated parts of the Helm chart (`make chart`); tests/helm compares them. Not part of the package.

A chart can read only files inside it, so the alerts and the dashboards stand in it as copies. The part of
values.schema.json under `config` is made from the settings tree: a misspelt key is refused before anything is
installed. What one key cannot tell (an objective's grammar, the sense of a budget) is left to the program.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel

from calibrator.settings.fields import is_named, keys
from calibrator.settings.tree import BackendSettings, Settings
from calibrator.settings.values import Secret, Word

REPOSITORY = Path(__file__).resolve().parents[2]
CHART = Path(__file__).resolve().parent
DEPLOY = REPOSITORY / "deploy"
_TYPES = {int: "integer", float: "number", bool: "boolean", str: "string", Path: "string"}
_LIMITS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
_DURATION = {"type": "string", "pattern": r"^\s*([0-9.]+\s*(us|ms|s|m|h|d)\s*)+$"}


def files() -> dict[Path, str]:
    """Every generated file of the chart and what it has to hold."""
    readme, schema = CHART / "README.md", CHART / "values.schema.json"
    texts = {readme: with_table(readme.read_text()), schema: with_config(schema.read_text())}
    texts[CHART / "files" / "rules.yaml"] = (DEPLOY / "prometheus" / "rules.yaml").read_text()
    for dashboard in sorted((DEPLOY / "grafana").glob("*.json")):
        texts[CHART / "files" / "dashboards" / dashboard.name] = dashboard.read_text()
    return texts


# --------------------------------------------------------------------------------------------------- schema of `config`
def with_config(schema: str) -> str:
    document = json.loads(schema)
    document["properties"]["config"] = {**_mapping(Settings), "required": []}  # an empty one gets a sentence of ours
    document["properties"]["config"]["properties"]["backends"].pop("minProperties", None)
    return json.dumps(document, indent=2) + "\n"


def _mapping(model: type[BaseModel]) -> dict[str, Any]:
    if model is Secret:
        text = {"type": "string", "minLength": 1}
        parts = [{"required": ["file"]}, {"required": ["env"]}]
        return {
            "type": "object",
            "additionalProperties": False,
            "properties": {"file": text, "env": text},
            "oneOf": parts,
        }
    fields = keys(model)
    found = {
        "type": "object",
        "additionalProperties": False,
        "properties": {key: _schema(field.annotation, field.metadata) for key, field in fields.items()},
    }
    derived = {"url"} if model is BackendSettings else set()  # `replicas` may say it
    if required := [key for key, field in fields.items() if field.is_required() and key not in derived]:
        found["required"] = required
    return found


def _schema(annotation: Any, metadata: Sequence[Any]) -> dict[str, Any]:
    if hasattr(annotation, "__metadata__"):
        return _schema(get_args(annotation)[0], (*annotation.__metadata__, *metadata))
    if get_args(annotation):
        return _composed(annotation, metadata)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return _mapping(annotation)
    return _single(annotation, metadata)


def _composed(annotation: Any, metadata: Sequence[Any]) -> dict[str, Any]:
    """A list, a mapping by name, a choice of words or of types."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is tuple:
        least = [("minItems", item.min_length) for item in metadata if hasattr(item, "min_length")]
        return {"type": "array", "items": _schema(arguments[0], ()), **dict(least)}
    if is_named(annotation):
        return {"type": "object", "additionalProperties": _schema(arguments[1], ())}
    chosen = [one for one in arguments if one is not NoneType]  # in the chart, what is not wanted is left out
    if len(chosen) == 1:
        return _schema(chosen[0], metadata)
    limits = [item for item in metadata if not isinstance(item, Word)]
    return {"anyOf": [_schema(one, limits) for one in chosen]}


def _single(annotation: Any, metadata: Sequence[Any]) -> dict[str, Any]:
    word = next((item.text for item in metadata if isinstance(item, Word)), None)
    if word == "duration":
        return _DURATION
    if word is not None:
        return {"type": "string"}  # a value with a text form of its own
    limits = {name: getattr(item, key) for key, name in _LIMITS.items() for item in metadata if hasattr(item, key)}
    return {"type": _TYPES[annotation], **limits}


# ------------------------------------------------------------------------------------------------------ table of values
def with_table(readme: str) -> str:
    table = "\n".join(["| key | default | meaning |", "|---|---|---|", *_rows((CHART / "values.yaml").read_text())])
    marked = re.compile(r"(<!-- generated: values -->\n).*?(<!-- end -->)", re.DOTALL)
    return marked.sub(lambda match: f"{match[1]}{table}\n{match[2]}", readme)


def _rows(text: str) -> Iterator[str]:
    values = yaml.safe_load(text)
    for key, meaning in comments(text):
        default: Any = values
        for part in key.split("."):
            default = default[part]
        written = "" if isinstance(default, Mapping) and default else f"`{json.dumps(default)}`"
        yield f"| `{key}` | {written} | {meaning} |"


def comments(text: str) -> Iterator[tuple[str, str]]:
    """Each key that a `# --` comment stands above, in full, and the comment."""
    path: list[tuple[int, str]] = []
    meaning = ""
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        if comment := re.match(r"\s*# (-- )?(.*)", line):
            meaning = comment[2] if comment[1] else f"{meaning} {comment[2]}"
            continue
        if key := re.match(r"\s*([A-Za-z][\w.]*):", line):
            path = [*((depth, name) for depth, name in path if depth < indent), (indent, key[1])]
            if meaning:
                yield ".".join(name for _, name in path), meaning
        meaning = ""


if __name__ == "__main__":
    for path, content in files().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)

"""From a file and the environment to `Settings`; the problems of both are reported together.

Environment: `CALIBRATOR_LISTEN__PORT=8301` sets `listen.port` and takes precedence over the file. `-` in the name of a
backend is written `_` (`CALIBRATOR_BACKENDS__CHAT_EU__URL` is `backends.chat-eu.url`). A value that starts with `[` or
`{` is YAML, anything else is text. Two kinds of variables are ignored: those that Kubernetes sets for a Service called
"calibrator" (`CALIBRATOR_PORT=tcp://...`), and those that the gateway files under deploy/ read, in case both run from
one shell.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from calibrator.errors import ConfigurationError
from calibrator.settings.problems import Problem, configuration_error, explain
from calibrator.settings.tree import Settings
from calibrator.settings.yaml_text import read_yaml

PREFIX = "CALIBRATOR_"
_OF_GATEWAYS = frozenset({"CALIBRATOR_URL", "CALIBRATOR_TOKEN"})
_KUBERNETES = re.compile(  # name=value; a plain PORT is theirs only with their value: ..._LISTEN_PORT=1 is a typo
    r"CALIBRATOR_(?:[A-Z0-9]+_)*(?:SERVICE_HOST|SERVICE_PORT(?:_[A-Z0-9]+)*|PORT_\d+_(?:TCP|UDP|SCTP)(?:_[A-Z]+)?)=.*"
    r"|CALIBRATOR_(?:[A-Z0-9]+_)*PORT=(?:tcp|udp|sctp)://.*"
)


class _Given(PydanticBaseSettingsSource):
    """Values already read; pydantic-settings merges the sources key by key."""

    def __init__(self, settings_cls: type[BaseSettings], values: dict[str, Any]) -> None:
        super().__init__(settings_cls)
        self._values = values

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002 - abstract
        return self._values.get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        return self._values


def load_settings(path: Path | None, environ: Mapping[str, str]) -> Settings:
    """Raises ConfigurationError with every problem and its key."""
    from_file = {} if path is None else _read_file(path)
    from_environment = _read_environment(environ)
    names = [str(path)] * (path is not None) + ["the environment"] * (path is None or bool(from_environment))
    return _settings(" with ".join(names), from_environment, from_file)


def parse_settings(values: dict[str, Any]) -> Settings:
    """From values of a program (the demo), validated like the file. Raises ConfigurationError."""
    return _settings("the configuration", values)


def _settings(name: str, *layers: dict[str, Any]) -> Settings:
    """The first layer takes precedence, key by key."""
    sources = tuple(_Given(Settings, values) for values in layers)
    try:
        return Settings(_build_sources=(sources, {}))  # type: ignore[call-arg]  # mypy sees the fields only
    except ValidationError as error:
        raise configuration_error(name, explain(Settings, error)) from None


def _read_file(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: byte {error.start + 1} is not UTF-8.", "Save the file as UTF-8.") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigurationError(f"{path}: cannot be read ({reason}).", "Give the path of a YAML file.") from None
    values = read_yaml(text, str(path))
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigurationError(f"{path}: is not a mapping.", "Start the file with keys such as 'backends:'.")
    return values


def _read_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    problems = []
    for variable, value in sorted(environ.items()):
        is_ours = variable.startswith(PREFIX) and variable not in _OF_GATEWAYS
        if not is_ours or _KUBERNETES.fullmatch(f"{variable}={value}"):
            continue
        if not _put(tree, _keys(variable), read_yaml(value, variable) if value.startswith(("[", "{")) else value):
            problems.append(Problem(variable, "conflicts with a variable that sets its parent.", "Unset one of them."))
    if problems:
        raise configuration_error("the environment", problems)
    return tree


def _put(tree: dict[str, Any], keys: Sequence[str], value: Any) -> bool:
    """False: another variable already sets one of the keys on the path."""
    *parents, last = keys
    node: Any = tree
    for key in parents:
        node = node.setdefault(key, {})
        if not isinstance(node, dict):
            return False
    if last in node:
        return False
    node[last] = value
    return True


def _keys(variable: str) -> list[str]:
    keys = variable.removeprefix(PREFIX).lower().split("__")
    if keys[0] == "backends" and len(keys) > 1:
        keys[1] = keys[1].replace("_", "-")
    return keys

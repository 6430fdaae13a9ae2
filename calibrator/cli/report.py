"""`calibrator report`: a sweep for people, from a file of `sweep --save` or from a running service."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import httpx
from pydantic import ValidationError

from calibrator.errors import ConfigurationError, UnreachableError
from calibrator.web.report.report import FORMATS, report
from calibrator.web.wire.sweeps import SweepDocument

READ_LIMIT_S = 30.0
LEAST_READABLE = 'Use a file from "calibrator sweep --save", or the URL of a sweep in a service.'


def write_report(source: str, kind: str, compare: str | None, to: Path | None, token_env: str | None) -> None:
    """Raises ConfigurationError, UnreachableError."""
    if kind not in FORMATS:
        raise ConfigurationError(f"'{kind}' is not a report format.", f"Use one of {', '.join(FORMATS)}.")
    token = token_in(token_env)
    other = None if compare is None else _read(compare, token)
    write_text(report(_read(source, token), kind, other), to)


def token_in(variable: str | None) -> str | None:
    """Raises ConfigurationError if it is not set."""
    token = None if variable is None else os.environ.get(variable)
    if variable is not None and not token:
        raise ConfigurationError(f"The variable {variable} is not set.", "Set it, or change --token-env.")
    return token


def write_text(text: str, to: Path | None) -> None:
    """To a file, or to stdout. Raises ConfigurationError."""
    if to is None:
        sys.stdout.write(text)
        return
    try:
        to.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{to} cannot be written: {error.strerror}.", "Choose another --to.") from None


def _read(source: str, token: str | None) -> SweepDocument:
    text = fetched(source, token) if source.startswith(("http://", "https://")) else _file(Path(source))
    try:
        return SweepDocument.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigurationError(f"{source} is not a sweep ({where}: {first['msg']}).", LEAST_READABLE) from None


def _file(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}.", LEAST_READABLE) from None


def fetched(url: str, token: str | None, remedy: str = LEAST_READABLE) -> str:
    """`remedy`: if something else is there, or nothing. Raises UnreachableError."""
    if "@" in url.partition("://")[2].partition("/")[0]:
        raise ConfigurationError("The URL contains credentials.", "Remove them, and pass a token with --token-env.")
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    try:
        answer = httpx.get(url, headers=headers, timeout=READ_LIMIT_S, trust_env=False)
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        raise UnreachableError(
            f"{url} cannot be read: {error}.", "Check the URL, and that the service is running."
        ) from None
    if answer.status_code in (401, 403):
        raise UnreachableError(f"{url} requires a token.", "Use --token-env with the variable that holds it.")
    if answer.status_code != 200:
        raise UnreachableError(f"{url} responds with status {answer.status_code}.", remedy)
    return answer.text

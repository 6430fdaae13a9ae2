"""Log lines on stderr, and no secret in them.

No code here logs a secret on purpose. What is left are texts of others: an error of a library that quotes a header, a
URL with credentials in it. So every finished line, ours and the standard library's, tracebacks included, is searched
for the secrets that are known and for what looks like credentials. Tracebacks are plain: the ones that rich would
draw show the values of local variables.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from urllib.parse import quote

import structlog

from calibrator.settings import Settings
from calibrator.settings.plans import known_secrets

HIDDEN = "[redacted]"
LEAST_CHARACTERS = 6  # shorter ones would blacken words that are only similar
_CREDENTIALS = (
    (re.compile(r"(?i)(\b(?:bearer|basic)\s+)(?!realm=)[A-Za-z0-9._~+/=-]{8,}"), rf"\1{HIDDEN}"),
    (re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s/:@'\"]*:)[^\s/@'\"]+(@)"), rf"\1{HIDDEN}\2"),
)


@dataclass(frozen=True, slots=True)
class LogPlan:
    """How and what to log. Picklable: it travels to the sweep's process."""

    level: str = "warning"
    form: str = "console"
    secrets: tuple[str, ...] = field(default=(), repr=False)


def log_plan(settings: Settings, environ: Mapping[str, str]) -> LogPlan:
    return LogPlan(settings.log.level, settings.log.format, known_secrets(settings, environ))


class Redaction:
    """Hides the secrets that were known at the start, as they are and as URLs, Python and JSON write them."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        long = [secret for secret in secrets if len(secret) >= LEAST_CHARACTERS]
        forms = {form for secret in long for form in (secret, quote(secret, safe=""), repr(secret)[1:-1])}
        forms |= {json.dumps(form)[1:-1] for form in forms}
        self._known = sorted(forms, key=len, reverse=True)  # one may be a part of another

    def text(self, line: str) -> str:
        for secret in self._known:
            line = line.replace(secret, HIDDEN)
        for pattern, replacement in _CREDENTIALS:
            line = pattern.sub(replacement, line)
        return line


def configure_logs(plan: LogPlan) -> None:
    """structlog for us, the standard library's loggers through the same stream; nothing on stdout."""
    redaction = Redaction(plan.secrets)
    numeric = logging.getLevelNamesMapping()[plan.level.upper()]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(levelname)s %(message)s", redaction.text))
    logging.basicConfig(level=max(numeric, logging.WARNING), handlers=[handler])
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if plan.form == "json"
        else structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
    )

    def render(logger: structlog.typing.WrappedLogger, name: str, event: structlog.typing.EventDict) -> str:
        return redaction.text(str(renderer(logger, name, event)))

    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(numeric),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


class _Formatter(logging.Formatter):
    def __init__(self, form: str, hide: Callable[[str], str]) -> None:
        super().__init__(form)
        self._hide = hide

    def format(self, record: logging.LogRecord) -> str:
        return self._hide(super().format(record))

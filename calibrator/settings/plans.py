"""From settings to the frozen values of the inner layers. Secrets are read here, and only here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from calibrator.core.admission.schedule import Schedule, Window
from calibrator.core.publish.recommendation import PublishPolicy
from calibrator.core.search.burst_mode import BurstMode
from calibrator.ports.sweeps import BackendPlan, Target
from calibrator.settings.problems import Problem, configuration_error
from calibrator.settings.tree import DAYS, BackendSettings, Settings
from calibrator.settings.values import Secret

MIN_TOKEN_CHARACTERS = 12  # random, 70 bits: cannot be guessed over a network


@dataclass(frozen=True, slots=True)
class Tokens:
    """Bearer tokens in force."""

    operator: tuple[str, ...] = field(default=(), repr=False)
    read: tuple[str, ...] = field(default=(), repr=False)


class _Reader:
    """Reads secrets and checks files; collects problems instead of stopping at the first."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._problems: list[Problem] = []

    def secret(self, key: str, reference: Secret | None) -> str | None:
        if reference is None:
            return None
        text = self._environment(key, reference.env) if reference.env is not None else self._file(key, reference.file)
        if text is not None and not (text.isascii() and text.isprintable() and text.strip() == text != ""):
            self._complain(
                key,
                "refers to a secret that is empty or not plain text.",
                "Provide one line of ASCII without leading or trailing spaces.",
            )
        return text

    def token(self, key: str, reference: Secret) -> str | None:
        """A secret that grants access."""
        text = self.secret(key, reference)
        if text is not None and 0 < len(text) < MIN_TOKEN_CHARACTERS:
            self._complain(
                key,
                f"refers to a token of only {len(text)} characters, which could be guessed.",
                f"Use at least {MIN_TOKEN_CHARACTERS}, for example from 'openssl rand -base64 24'.",
            )
        return text

    def distinct(self, key: str, texts: Iterable[str], others: Iterable[str]) -> None:
        if set(texts) & set(others):
            self._complain(
                key, "contains an operator token, which also permits writing.", "Give readers a separate token."
            )

    def existing(self, key: str, path: Path | None) -> str | None:
        if path is None:
            return None
        self._file(key, path)
        return str(path)

    def finish(self) -> None:
        if self._problems:
            raise configuration_error("the configuration", self._problems)

    def _environment(self, key: str, name: str) -> str | None:
        if name not in self._environ:
            self._complain(key, f"the environment variable {name} is not set.", "Set it, or refer to another variable.")
        return self._environ.get(name)

    def _file(self, key: str, path: Path | None) -> str | None:
        try:
            return Path(path or "").read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8"
            self._complain(
                key, f"the file {path} cannot be read ({reason}).", "Make it exist and readable for this user."
            )
            return None

    def _complain(self, key: str, cause: str, remedy: str) -> None:
        self._problems.append(Problem(key, cause, remedy))


def backend_plans(settings: Settings, environ: Mapping[str, str]) -> tuple[BackendPlan, ...]:
    """In the order of the file. Raises ConfigurationError with every missing secret and certificate.

    Tokens and the store's secret are checked too, so that a single start reports every problem.
    """
    reader = _Reader(environ)
    plans = tuple(_plan(name, backend, reader) for name, backend in settings.backends.items())
    _read_tokens(settings, reader)
    _read_database_url(settings, reader)
    reader.existing("store.ca_file", settings.store.ca_file)
    reader.finish()
    return plans


def tokens(settings: Settings, environ: Mapping[str, str]) -> Tokens:
    """Reads the files at each call, so that rotation takes effect. Raises ConfigurationError."""
    reader = _Reader(environ)
    found = _read_tokens(settings, reader)
    reader.finish()
    return found


def database_url(settings: Settings, environ: Mapping[str, str]) -> str | None:
    """URL of the PostgreSQL with the state; None: it is in a file. Read at each call. Raises ConfigurationError."""
    reader = _Reader(environ)
    found = _read_database_url(settings, reader)
    reader.finish()
    return found


def known_secrets(settings: Settings, environ: Mapping[str, str]) -> tuple[str, ...]:
    """Everything that must not be logged, as far as it can be read now, including the password in the database URL."""
    reader = _Reader(environ)
    backends = settings.backends.values()
    of_backends = [one for backend in backends for one in (backend.api_key, *backend.headers.values())]
    references = [*token_keys(settings).values(), *of_backends]
    texts = [reader.secret("", reference) for reference in (*references, settings.store.postgresql)]
    password = _password(texts[-1])
    headers = [environ.get(f"OTEL_EXPORTER_OTLP_{signal}HEADERS", "") for signal in ("", "TRACES_")]
    values = [unquote(pair.partition("=")[2]) for text in headers for pair in text.split(",")]
    return tuple(dict.fromkeys(text for text in (*texts, password, unquote(password), *values) if text))


def _password(url: str | None) -> str:
    try:
        return urlsplit(url or "").password or ""
    except ValueError:
        return ""


def redacted(settings: Settings) -> dict[str, Any]:
    """The effective settings as they would be written in a file. Secrets are references, so none is disclosed."""
    return settings.model_dump(mode="json", by_alias=True, exclude_none=True)


def _read_database_url(settings: Settings, reader: _Reader) -> str | None:
    return reader.secret("store.postgresql", settings.store.postgresql)


def one_token(key: str, reference: Secret, environ: Mapping[str, str]) -> str:
    """Reads the files at each call, so that rotation takes effect. Raises ConfigurationError."""
    reader = _Reader(environ)
    text = reader.token(key, reference)
    reader.finish()
    return text or ""


def token_keys(settings: Settings) -> Mapping[str, Secret]:
    """References by key, operators' first."""
    lists = {"auth.operator_tokens": settings.auth.operator_tokens, "auth.read_tokens": settings.auth.read_tokens}
    return {f"{key}[{index}]": one for key, references in lists.items() for index, one in enumerate(references)}


def _read_tokens(settings: Settings, reader: _Reader) -> Tokens:
    found = {key: reader.token(key, reference) or "" for key, reference in token_keys(settings).items()}
    operators = tuple(text for key, text in found.items() if text and key.startswith("auth.operator"))
    readers = tuple(text for key, text in found.items() if text and key.startswith("auth.read"))
    reader.distinct("auth.read_tokens", readers, operators)
    return Tokens(operators, readers)


def _plan(name: str, backend: BackendSettings, reader: _Reader) -> BackendPlan:
    key = f"backends.{name}"
    return BackendPlan(
        name=name,
        engine_group=backend.engine_group or name,
        target=Target(
            url=backend.url,
            model=backend.model,
            api=backend.api,
            api_key=reader.secret(f"{key}.api_key", backend.api_key),
            api_key_in=backend.api_key_in,
            headers=tuple(
                (one, reader.secret(f"{key}.headers.{one}", at) or "") for one, at in backend.headers.items()
            ),
            ca_file=reader.existing(f"{key}.ca_file", backend.ca_file),
            client_cert_file=reader.existing(f"{key}.client_cert_file", backend.client_cert_file),
            client_key_file=reader.existing(f"{key}.client_key_file", backend.client_key_file),
            metrics_url=backend.metrics_url,
        ),
        objectives=backend.objectives,
        workload=backend.workload.value(),
        bounds=backend.sweep_bounds(),
        burst=BurstMode(backend.burst),
        guard=backend.guard.value(),
        triggers=backend.triggers.value(),
        mirror=backend.workload.mirrored(),
        limits=backend.limits.value(observe=backend.mode == "observe", shadow=backend.publish == "shadow"),
        replicas=backend.replicas.value(),
        schedule=Schedule(backend.every_s, backend.jitter_ratio, tuple(_window(window) for window in backend.windows)),
        policy=PublishPolicy(
            fallback_cap=backend.fallback_cap,
            min_cap=backend.cap.min,
            max_cap=backend.cap.max,
            safety_margin_ratio=backend.safety_margin_ratio,
            max_increase_ratio=backend.max_increase_ratio,
            valid_for_s=backend.validity_s,
        ),
    )


def _window(window: Any) -> Window:
    weekdays = tuple(sorted({DAYS.index(day) for day in window.days}))
    return Window(weekdays, window.from_minute, window.to_minute, window.time_zone)

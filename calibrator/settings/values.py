"""Single values of the configuration with their text form: durations, objectives, secrets, URLs, times of day."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qsl, urlsplit
from zoneinfo import ZoneInfo

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationInfo,
    field_validator,
    model_validator,
)

from calibrator.core.records.objective import Objective, format_duration, parse_duration_s, parse_objective
from calibrator.errors import ConfigurationError
from calibrator.settings.problems import Problem, refuse, refuse_value

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TIME = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])")
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
_KEY_PLACE = re.compile(r"bearer|header:[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}|query:[A-Za-z0-9._~-]{1,100}")
_OUR_HEADERS = frozenset(  # what the client says of itself and of its requests
    [
        "host",
        "content-length",
        "content-type",
        "transfer-encoding",
        "connection",
        "accept",
        "accept-encoding",
        "user-agent",
        "x-request-id",
        "traceparent",
    ]
)
_SECRET_PARAMETERS = frozenset(  # of a query
    [
        "key",
        "api_key",
        "apikey",
        "api-key",
        "subscription-key",
        "token",
        "access_token",
        "auth",
        "code",
        "sig",
        "signature",
        "secret",
        "password",
    ]
)
_SECRET_REMEDY = "Write {file: /run/secrets/name} or {env: NAME}."  # noqa: S105 - it names the form, not a secret

Text = Annotated[str, Field(min_length=1)]


class Frozen(BaseModel):
    """Base of all settings: immutable, unknown keys refused, numbers finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and cls.model_fields[info.field_name or ""].annotation in (int, float):
            refuse(Problem("", f"'{value}' is not a number.", "Write it in digits."))
        return value


def _duration_s(value: Any) -> float:
    if not isinstance(value, str):
        refuse(Problem("", "is not a duration with its unit.", "Write it like 500ms, 90s, 20m, 6h or 1h30m."))
    try:
        seconds = parse_duration_s(value)
    except ConfigurationError as error:
        refuse_value(error)
    if not 0.0 < seconds <= 366 * 86_400.0:
        refuse(Problem("", f"'{value}' is not a usable duration.", "Use more than 0 and at most a year."))
    return seconds


def _objective(value: Any) -> Objective:
    if not isinstance(value, str):
        refuse(Problem("", "is not an objective.", "Write it like 'ttft p99 <= 500ms', in quotes."))
    try:
        return parse_objective(value)
    except ConfigurationError as error:
        refuse_value(error)


def _file(value: Path) -> Path:
    if not value.name or "\0" in str(value):
        refuse(Problem("", "is not the path of a file.", "Write it like /etc/calibrator/name."))
    return value


def _name(value: str) -> str:
    if not _NAME.fullmatch(value):
        refuse(
            Problem(
                "",
                f"'{value[:80]}' is not a valid name.",
                "Use a-z, 0-9 and '-', at most 63 characters, not starting with '-'.",
            )
        )
    return value


def _minute_of_day(value: Any) -> int:
    match = _TIME.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        refuse(Problem("", "is not a time of day.", 'Write it like "22:00", in quotes, from "00:00" to "23:59".'))
    return 60 * int(match[1]) + int(match[2])


def _time_zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (OSError, ValueError, KeyError):  # the name of a directory, an invalid name, an unknown one
        refuse(Problem("", f"'{value[:80]}' is not a known time zone.", "Use an IANA name such as Europe/Berlin."))
    return value


def _http_url(value: str) -> str:
    """`scheme://host[:port]/path`; credentials in it would be an inline secret, so the value is never quoted."""
    example = "Write it like http://host:8000/v1."
    try:
        parts = urlsplit(value)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable or not value.isascii() or any(character <= " " for character in value):
        refuse(Problem("", "is not an HTTP URL.", example))
    if parts.username is not None or parts.password is not None:
        refuse(Problem("", "contains credentials, which belong in api_key.", f"Remove them. {_SECRET_REMEDY}"))
    if parts.fragment:
        refuse(Problem("", "contains a fragment.", example))
    if secret_parameter(value):
        refuse(
            Problem("", "contains a secret in its query.", f"Use api_key with api_key_in: query:NAME. {_SECRET_REMEDY}")
        )
    return tidy_url(value)


def tidy_url(url: str) -> str:
    """Without slashes at the end of its path; a query stays as it is."""
    base, mark, query = url.partition("?")
    return f"{base.rstrip('/')}{mark}{query}"


def secret_parameter(url: str) -> str:
    """The name of a query's parameter that by its name holds a secret; empty: there is none."""
    pairs = parse_qsl(url.partition("?")[2], keep_blank_values=True)
    return next((name for name, _ in pairs if name.lower() in _SECRET_PARAMETERS), "")


def header_problem(name: str) -> str:
    """Why a header of this name cannot be configured; empty: it can."""
    if not _HEADER.fullmatch(name):
        return f"'{name[:80]}' is not the name of a header."
    return f"'{name}' is a header that calibrator sets itself." if name.lower() in _OUR_HEADERS else ""


def _header_name(value: str) -> str:
    if problem := header_problem(value):
        refuse(Problem("", problem, "Write it like OpenAI-Organization."))
    return value


def key_place(value: str) -> str:
    """Raises ValueError if no key can stand there."""
    name = value.removeprefix("header:")
    if not _KEY_PLACE.fullmatch(value) or (name != value and header_problem(name)):
        raise ValueError(f"'{value[:80]}' is not a place for a key.")
    return value


def _key_place(value: str) -> str:
    try:
        return key_place(value)
    except ValueError as error:
        refuse(Problem("", str(error), "Write bearer, header:api-key or query:key."))


def _api_url(value: str) -> str:
    url = _http_url(value)
    path = urlsplit(url).path
    if not path:
        refuse(Problem("", "ends before the API's base path.", f"Add it, usually /v1: {url.partition('?')[0]}/v1."))
    if path.endswith("/completions"):
        refuse(Problem("", "is the URL of one operation, not the base of the API.", "Remove everything after /v1."))
    return url


def _clock(minute: int) -> str:
    return f"{minute // 60:02d}:{minute % 60:02d}"


@dataclass(frozen=True, slots=True)
class Word:
    """What a value is called in the reference."""

    text: str


DurationS = Annotated[float, PlainValidator(_duration_s), PlainSerializer(format_duration), Word("duration")]
ObjectiveText = Annotated[Objective, PlainValidator(_objective), PlainSerializer(str), Word("objective")]
MinuteOfDay = Annotated[int, PlainValidator(_minute_of_day), PlainSerializer(_clock), Word("time of day")]
File = Annotated[Path, AfterValidator(_file)]
Name = Annotated[str, AfterValidator(_name), Word("name")]
TimeZone = Annotated[str, AfterValidator(_time_zone), Word("time zone")]
HttpUrl = Annotated[str, AfterValidator(_http_url), Word("URL")]
ApiUrl = Annotated[str, AfterValidator(_api_url), Word("URL")]
HeaderName = Annotated[str, AfterValidator(_header_name), Word("header")]
KeyPlace = Annotated[str, AfterValidator(_key_place), Word("place of a key")]


class Secret(Frozen):
    """A reference to a secret. The secret itself is never in the configuration, so that the file can be shared."""

    file: File | None = Field(default=None, description="file that contains the secret; a final newline is ignored")
    env: str | None = Field(default=None, description="environment variable that contains the secret")

    @model_validator(mode="before")
    @classmethod
    def _is_a_reference(cls, value: Any) -> Any:
        if not isinstance(value, dict):  # never quote this value
            refuse(Problem("", "a secret must not be written in the configuration itself.", _SECRET_REMEDY))
        if len(value) != 1 or not value.keys() <= {"file", "env"}:
            refuse(Problem("", "is not a reference to one secret.", _SECRET_REMEDY))
        (target,) = value.values()
        if not isinstance(target, str) or not target or "\0" in target:
            refuse(Problem("", "refers to nothing.", _SECRET_REMEDY))
        if "env" in value and not _VARIABLE.fullmatch(target):
            refuse(Problem("env", "is not the name of an environment variable.", _SECRET_REMEDY))
        return value

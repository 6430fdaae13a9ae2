"""What engines and proxies say when they refuse: their words, the code behind them, and whether a quota is the reason.

Where the words stand:

| place | who |
|---|---|
| `error.message` | OpenAI's form: vLLM, llama.cpp, SGLang, most gateways; `error.param` names the field |
| `error` as text, with `error_type` | TGI, Ollama |
| `message`, `code` at the top | SGLang, Dynamo, Mistral's |
| `detail`, a text or a list of `{loc, msg}` | FastAPI and pydantic; within `message` at Mistral's |
| `error.type` alone | Anthropic's form, as an event |

**Code.** A status where the error has one; else by its type, for an error event comes under status 200.

**Quota.** A 429 that counts requests or tokens per time says nothing about an engine's capacity; one that counts what
is in flight does. The first kind comes with Retry-After or rate-limit headers, or names a period; a text that speaks of
concurrency, queues or load is never one, whatever its headers: limiters of concurrency send Retry-After too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

MAX_BYTES = 2048
_MAX_HEADERS = 4  # of those that explain a quota

_CODES = {
    "overloaded_error": 529,
    "Overloaded": 529,
    "overloaded": 503,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "insufficient_quota": 429,
    "invalid_request_error": 400,
    "BadRequestError": 400,
    "exceed_context_size_error": 400,
    "context_length_exceeded": 400,
    "authentication_error": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "NotFoundError": 404,
}
_LOAD = re.compile(
    r"concurren|parallel|in[ _-]?flight|queue|overload|capacity|busy|too many (open|active|running)", re.IGNORECASE
)
_PERIOD = re.compile(
    r"quota|\b[rt]pm\b|(per|each|an?|/)[ -]?(second|minute|hour|day|month)\b|(per|/) ?(min|sec|s)\b", re.IGNORECASE
)
_QUOTA_HEADER = re.compile(rb"retry-after(-ms)?|(x-)?rate-?limit.*|.*-ratelimit-.*")


def clean(text: bytes) -> str:
    """One line, printable, bounded."""
    return " ".join(text[:MAX_BYTES].decode("utf-8", "replace").split())[:MAX_BYTES] or "no text"


def as_object(body: bytes) -> dict[str, Any] | None:
    """A JSON object; None for everything else."""
    try:
        parsed = json.loads(body)
    except ValueError:
        return None
    return parsed if isinstance(parsed, dict) else None


def is_error(parsed: dict[str, Any]) -> bool:
    return bool(parsed.get("error")) or parsed.get("object") == "error" or parsed.get("type") == "error"


def error_text(body: bytes) -> str:
    """The server's message out of an error body; else the start of the body itself."""
    try:
        parsed = json.loads(body)
    except ValueError:
        parsed = None
    if isinstance(parsed, list) and parsed:  # Gemini's
        parsed = parsed[0]
    return said_error(parsed) if isinstance(parsed, dict) else clean(body)


def said_error(parsed: dict[str, Any]) -> str:
    """The message, and the field that it is about where the message does not name it."""
    error = parsed.get("error")
    param = error.get("param") if isinstance(error, dict) else parsed.get("param")
    if isinstance(error, dict):
        error = error.get("message") or error.get("type") or json.dumps(error)
    said = _flat(error or parsed.get("message") or parsed.get("detail") or json.dumps(parsed))
    if isinstance(param, str) and param and param not in said:
        said = f"{said} ({param})"
    return clean(said.encode())


def _flat(said: object) -> str:
    """pydantic's list of complaints, a few words each."""
    if isinstance(said, dict) and isinstance(said.get("detail"), list):
        said = said["detail"]
    if not isinstance(said, list) or not all(isinstance(one, dict) and "msg" in one for one in said):
        return str(said)
    return "; ".join(f"{'.'.join(str(part) for part in one.get('loc') or ())}: {one['msg']}" for one in said)


def error_code(parsed: dict[str, Any]) -> int | None:
    """The status that the error would have had, had it come in time."""
    error = parsed.get("error")
    fields = error if isinstance(error, dict) else parsed
    names = [fields.get(key) for key in ("code", "status", "type", "error_type")]
    if not isinstance(error, dict):
        names.append(parsed.get("error_type"))
    for name in names:
        if isinstance(name, int) and not isinstance(name, bool):
            return name
        if isinstance(name, str) and name.isdecimal() and len(name) == 3:
            return int(name)
    return next((_CODES[name] for name in names if isinstance(name, str) and name in _CODES), None)


def quota_words(words: str, body: str, headers: Mapping[bytes, bytes]) -> str | None:
    """The words of a 429 with what its headers add, if a quota per time is the reason; else None."""
    told = sorted(name for name in headers if _QUOTA_HEADER.fullmatch(name))
    if _LOAD.search(body) or not (told or _PERIOD.search(body)):
        return None
    shown = [f"{name.decode('latin-1')}: {headers[name].decode('latin-1')[:80]}" for name in told[:_MAX_HEADERS]]
    return f"{words} ({'; '.join(shown)})" if shown else words

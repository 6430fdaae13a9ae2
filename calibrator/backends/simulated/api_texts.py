"""What an OpenAI-compatible engine reads and writes, in vLLM's words: requests, chunks, answers, errors.

Tokens are words; the answer's text repeats a few of them. Errors carry vLLM's types and messages, so that a client's
reading of them can be tested without one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from calibrator.backends.simulated import tokenizer
from calibrator.backends.simulated.driver import Request
from calibrator.backends.simulated.parameters import EngineParameters

ANSWER_WORDS = (" so", " it", " goes", " on", " and", " on", " like", " this")
DONE = b"data: [DONE]\n\n"


class ApiError(Exception):
    """An answer that is not a completion."""

    def __init__(self, status: int, kind: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": status}}


def refused() -> ApiError:
    return ApiError(503, "Service Unavailable", "The engine's queue is full. Please retry later.")


@dataclass(frozen=True, slots=True)
class Ask:
    """One completion request, understood."""

    chat: bool
    prompt: Sequence[str]
    max_tokens: int | None
    min_tokens: int
    ignore_eos: bool
    stream: bool
    include_usage: bool

    @property
    def prompt_tokens(self) -> int:
        return tokenizer.prompt_tokens(self.prompt)


def parse_ask(raw: bytes, *, chat: bool, model: str) -> Ask:
    """Raises ApiError."""
    try:
        body = json.loads(raw)
    except ValueError:
        raise _bad("The body is not JSON.") from None
    if not isinstance(body, dict):
        raise _bad("The body is not an object.")
    if body.get("model") != model:
        raise ApiError(404, "NotFoundError", f"The model `{body.get('model')}` does not exist.", "model")
    options = body.get("stream_options") or {}
    return Ask(
        chat=chat,
        prompt=tokenizer.words(_chat_text(body) if chat else _plain_text(body)),
        max_tokens=_tokens(body, "max_completion_tokens", 1) or _tokens(body, "max_tokens", 1),
        min_tokens=_tokens(body, "min_tokens", 0) or 0,
        ignore_eos=body.get("ignore_eos") is True,
        stream=body.get("stream") is True,
        include_usage=isinstance(options, dict) and options.get("include_usage") is True,
    )


def answer_tokens(ask: Ask, parameters: EngineParameters, natural_tokens: int) -> int:
    """How many tokens the answer will have. Raises ApiError if it cannot fit the context."""
    room = parameters.max_context_tokens - ask.prompt_tokens
    wanted = ask.max_tokens if ask.max_tokens is not None else max(room, 1)
    if not parameters.fits(ask.prompt_tokens, wanted):
        total = ask.prompt_tokens + wanted
        raise _bad(
            f"This model's maximum context length is {parameters.max_context_tokens} tokens. However, you requested "
            f"{wanted} output tokens and your prompt contains {ask.prompt_tokens} input tokens, for a total of {total} "
            "tokens. Please reduce the length of the input prompt or the number of requested output tokens.",
            "input_tokens",
        )
    return wanted if ask.ignore_eos else min(wanted, max(ask.min_tokens, natural_tokens))


@dataclass(frozen=True, slots=True)
class Wording:
    """The answer to one request, in bytes."""

    ask: Ask
    request_id: str
    model: str
    created: int
    reasoning_tokens: int = 0  # the first of a chat answer; plain completions think aloud

    def role_chunk(self) -> bytes:
        """Opens a chat stream: a role, no text. Plain completions have none."""
        return self._event([self._choice({"role": "assistant", "content": ""}, None)]) if self.ask.chat else b""

    def token_chunk(self, index: int, finish_reason: str | None = None) -> bytes:
        """Token number `index`; the last one carries the finish reason, as vLLM's does."""
        word = ANSWER_WORDS[index % len(ANSWER_WORDS)]
        key = "reasoning_content" if index < self.reasoning_tokens else "content"
        return self._event([self._choice({key: word} if self.ask.chat else word, finish_reason)])

    def ending(self, request: Request) -> bytes:
        usage = self._event([], usage=usage_of(request)) if self.ask.include_usage else b""
        return usage + DONE

    def document(self, request: Request, finish_reason: str | None) -> dict[str, Any]:
        """The whole answer, not streamed."""
        words = [ANSWER_WORDS[index % len(ANSWER_WORDS)] for index in range(request.made_tokens)]
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish_reason}
        if self.ask.chat:
            thought, said = "".join(words[: self.reasoning_tokens]), "".join(words[self.reasoning_tokens :])
            thinking = {"reasoning_content": thought} if thought else {}
            choice["message"] = {"role": "assistant", "content": said, **thinking}
        else:
            choice["text"] = "".join(words)
        return self._envelope([choice], kind="chat.completion") | {"usage": usage_of(request)}

    def _choice(self, delta: Mapping[str, str] | str, finish_reason: str | None) -> dict[str, Any]:
        key = "delta" if self.ask.chat else "text"
        return {"index": 0, key: delta, "finish_reason": finish_reason}

    def _envelope(self, choices: Sequence[Mapping[str, Any]], kind: str) -> dict[str, Any]:
        return {
            "id": self.request_id,
            "object": kind if self.ask.chat else "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }

    def _event(self, choices: Sequence[Mapping[str, Any]], **more: object) -> bytes:
        return event(self._envelope(choices, kind="chat.completion.chunk") | more)


def event(payload: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(payload, separators=(",", ":")).encode() + b"\n\n"


def usage_of(request: Request) -> dict[str, Any]:
    return {
        "prompt_tokens": request.prompt_tokens,
        "completion_tokens": request.made_tokens,
        "total_tokens": request.prompt_tokens + request.made_tokens,
        "prompt_tokens_details": {"cached_tokens": request.cached_tokens},
    }


def _bad(message: str, param: str | None = None) -> ApiError:
    return ApiError(400, "BadRequestError", message, param)


def _tokens(body: Mapping[str, Any], key: str, least: int) -> int | None:
    value = body.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise _bad(f"{key} must be an integer of at least {least}, got {value!r}.", key)
    return value


def _plain_text(body: Mapping[str, Any]) -> str:
    prompt = body.get("prompt")
    if not isinstance(prompt, str) or not prompt:
        raise _bad("prompt must be a text.", "prompt")
    return prompt


def _chat_text(body: Mapping[str, Any]) -> str:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(one, dict) for one in messages):
        raise _bad("messages must be a list of messages.", "messages")
    return " ".join(_content_text(one.get("content")) for one in messages)


def _content_text(content: object) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return " ".join(
            part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)
        )
    raise _bad("A message's content must be a text or a list of parts.", "messages")

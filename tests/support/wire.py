"""An in-memory transport, and the pieces of which scripted answers are made."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from calibrator.core.records.sample import Label, Phase, ProbeRequest


class MemoryTransport(asyncio.Transport):
    """Keeps what was written; `abort` reports the loss in the next turn of the loop, as real transports do."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self.written = b""
        self.aborted = False
        self._protocol = protocol
        protocol.connection_made(self)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def abort(self) -> None:
        if not self.aborted:
            self.aborted = True
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)

    def close(self) -> None:
        self.abort()

    def is_closing(self) -> bool:
        return self.aborted

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


def probe(request_id: int = 1, *, stream: bool = True, output_tokens: int = 4, text: str = "hello") -> ProbeRequest:
    return ProbeRequest(request_id, Label(0, Phase.COUNTED), "default", text, 1, output_tokens, stream)


def event(payload: object) -> bytes:
    return b"data: " + json.dumps(payload, separators=(",", ":")).encode() + b"\n\n"


def chunk(delta: Mapping[str, object] | None = None, finish: str | None = None, **more: object) -> bytes:
    """One chat chunk as an SSE event."""
    choice = {"index": 0, "delta": delta or {}, "logprobs": None, "finish_reason": finish}
    return event({"id": "c", "object": "chat.completion.chunk", "model": "m", "choices": [choice], **more})


def usage(prompt_tokens: int = 7, completion_tokens: int = 3) -> dict[str, int]:
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}


ROLE = chunk({"role": "assistant", "content": ""})
HELLO = chunk({"content": "hello"})
FINISH = chunk({}, finish="length")
USAGE = event({"id": "c", "object": "chat.completion.chunk", "choices": [], "usage": usage()})
DONE = b"data: [DONE]\n\n"
GOOD_BODY = ROLE + HELLO * 3 + FINISH + USAGE + DONE


def head(status: str = "200 OK", content_type: str = "text/event-stream", *more: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", f"Content-Type: {content_type}", *more, "", ""]).encode()


def sized(body: bytes, status: str = "200 OK", content_type: str = "text/event-stream", *more: str) -> bytes:
    return head(status, content_type, f"Content-Length: {len(body)}", *more) + body


def chunked(*parts: bytes, end: bool = True) -> bytes:
    body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    return head("200 OK", "text/event-stream", "Transfer-Encoding: chunked") + body + (b"0\r\n\r\n" if end else b"")

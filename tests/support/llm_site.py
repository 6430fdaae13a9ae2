"""The site of real gateways, with requests and answers of a chat API: streams, errors, and either side leaving."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from support.gateway_site import SPREAD, Answer, Bench, _head

API_KEY = "sk-test"
CHUNKS = 4  # of a stream
EVERYBODY = 10_000  # more than are ever kept
LEFT = 0  # "status" for a client that went without an answer's head


class Fate(StrEnum):
    """What the backend does with a request; it reads it in the prompt."""

    ANSWERED = "answered"
    REFUSED = "refused"  # 500, at once
    DROPPED = "dropped"  # the connection ends without an answer
    CUT = "cut"  # the answer ends in its middle


@dataclass(frozen=True, slots=True)
class Ask:
    """A request, and when its client leaves."""

    stream: bool = False
    fate: Fate = Fate.ANSWERED
    path: str = "/v1/chat/completions"
    leaves_after_s: float | None = None
    call_id: str = ""

    def bytes(self) -> bytes:
        prompt = {"input": self.fate} if self.path.endswith("embeddings") else {}
        turns = {"messages": [{"role": "user", "content": self.fate}], "max_tokens": 16, "stream": self.stream}
        body = json.dumps({"model": "llm", **(prompt or turns)})
        head = f"POST {self.path} HTTP/1.1\r\nHost: llm\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
        head += f"Authorization: Bearer {API_KEY}\r\nContent-Type: application/json\r\n"
        head += f"x-litellm-call-id: {self.call_id}\r\n" if self.call_id else ""
        return f"{head}\r\n{body}".encode()


PLAIN = (Ask(),)
MIXED = (
    Ask(),
    Ask(stream=True),
    Ask(stream=True, leaves_after_s=0.05),
    Ask(leaves_after_s=0.05),
    Ask(fate=Fate.REFUSED),
    Ask(stream=True, fate=Fate.REFUSED),
    Ask(fate=Fate.DROPPED),
    Ask(stream=True, fate=Fate.CUT),
    Ask(path="/v1/messages"),
    Ask(path="/v1/messages", stream=True),
    Ask(path="/v1/embeddings"),
    Ask(stream=True, leaves_after_s=0.0),
)


@dataclass
class LlmBench(Bench):
    """`kinds` are asked in turn."""

    kinds: Iterator[Ask] = field(default_factory=lambda: itertools.cycle(PLAIN))
    _gate: asyncio.Semaphore | None = None  # what came while there is one waits to be let go

    def ask(self, kinds: Sequence[Ask]) -> None:
        self.kinds = itertools.cycle(kinds)

    @property
    def in_flight(self) -> int:
        return sum(self._in_flight.values())

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Meanwhile the backend ends no answer until it is told to: what is in flight depends on nobody's speed."""
        gate = self._gate = asyncio.Semaphore(0)
        try:
            yield
        finally:
            self._gate = None
            self._let_go(gate, EVERYBODY)

    def let_go(self, count: int = 1) -> None:
        """Of those that are kept, first come, first served."""
        assert self._gate is not None
        self._let_go(self._gate, count)

    def _let_go(self, gate: asyncio.Semaphore, count: int) -> None:
        async def release() -> None:
            for _ in range(count):
                gate.release()

        self._call(release())

    # ------------------------------------------------------------------------------------------------ client
    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Answer:
        ask, began_s = next(self.kinds), self.now_s()
        status, headers = LEFT, {"connection": "close"}
        writer.write(ask.bytes())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ask.leaves_after_s):
                start, headers = await _head(reader)
                status = int(start.split()[1])
                await reader.read()
        answer = Answer(self.now_s(), status, self.now_s() - began_s, {**headers, "connection": "close"})
        self.answers.append(answer)
        return answer

    # --------------------------------------------------------------------------------------------- backend
    async def _serve(self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(OSError, asyncio.IncompleteReadError):
            start, headers = await _head(reader)
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            if not start.startswith("POST"):
                writer.write(b"HTTP/1.1 404 Not Found\r\nConnection: close\r\n\r\n")
                return
            answering = asyncio.create_task(self._answer(port, start.split()[1], json.loads(body), writer))
            gone = asyncio.create_task(reader.read(1))
            try:
                await asyncio.wait([answering, gone], return_when=asyncio.FIRST_COMPLETED)
            finally:
                answering.cancel()  # an engine aborts what nobody waits for
                gone.cancel()
                await asyncio.gather(answering, gone, return_exceptions=True)

    async def _answer(self, port: int, path: str, asked: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        self._count(port, 1)
        try:
            last = await self._compute(path, asked, writer)
        finally:
            self._count(port, -1)  # before the bytes that tell the gateway so
        writer.write(last)
        await writer.drain()

    async def _compute(self, path: str, asked: dict[str, Any], writer: asyncio.StreamWriter) -> bytes:
        """The answer, or what is left of it to send."""
        fate = next(fate for fate in Fate if fate in json.dumps(asked))
        if fate is Fate.REFUSED:
            return b"HTTP/1.1 500 Internal Server Error\r\nConnection: close\r\n\r\n" + _json(error={"message": "no"})
        is_stream = bool(asked.get("stream"))
        if is_stream and fate is not Fate.DROPPED:
            writer.write(_HEAD + b"Content-Type: text/event-stream\r\n\r\n")
        if self._gate is not None:
            await self._gate.acquire()
        for _ in range(CHUNKS if fate is Fate.ANSWERED else 1):
            await asyncio.sleep(self.latency_s * self._draws.uniform(1.0 - SPREAD, 1.0 + SPREAD) / CHUNKS)
            if is_stream and fate is not Fate.DROPPED:
                writer.write(b"data: " + _chunk({"content": "word "}) + b"\n\n")
        if fate is not Fate.ANSWERED:
            return b""
        return _stream_end() if is_stream else _whole(path)


_HEAD = b"HTTP/1.1 200 OK\r\nConnection: close\r\n"
_USAGE = {"prompt_tokens": 3, "completion_tokens": CHUNKS, "total_tokens": 3 + CHUNKS}


def _json(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def _chunk(delta: dict[str, str], finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return _json(id="c", object="chat.completion.chunk", created=1, model="m", choices=[choice], **more)


def _stream_end() -> bytes:
    return b"data: " + _chunk({}, "stop", usage=_USAGE) + b"\n\ndata: [DONE]\n\n"


def _whole(path: str) -> bytes:
    if path.endswith("embeddings"):
        data = [{"object": "embedding", "index": 0, "embedding": [0.5]}]
        body = _json(object="list", model="m", data=data, usage=_USAGE)
    else:
        message = {"role": "assistant", "content": "word " * CHUNKS}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        body = _json(id="c", object="chat.completion", created=1, model="m", choices=[choice], usage=_USAGE)
    return _HEAD + f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@contextmanager
def llm_bench(*ports: int, latency_s: float) -> Iterator[LlmBench]:
    """Prints the timeline, which pytest shows with `-s` or when the test fails."""
    made = LlmBench(latency_s)
    with made.running(*ports):
        try:
            yield made
        finally:
            print("\n" + made.timeline())

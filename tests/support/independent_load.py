"""A second opinion on latency: a closed loop over asyncio streams that shares no code with the product.

One connection per request, opened before the clock starts. The first text, not the first event, ends the wait
(engines send an empty event first). Counted requests are followed to their end while uncounted ones hold the level;
the requests before them are warm-up. Users start spread out: users that start together stay together for long, and then
a level is a train of bursts.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import random
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Answer:
    """One streamed chat completion, as it arrived."""

    ttft_s: float
    e2e_s: float
    events: int  # that carried text
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str | None
    done: bool  # [DONE] seen


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def make_prompt(rng: random.Random, tokens: int) -> str:
    """Unique words of three syllables, four tokens each with the vocabulary of `support.tiny_model`."""
    syllables = [consonant + vowel for consonant in "bcdfghjklmnpqrstvwxyz" for vowel in "aeiou"]
    return " ".join("".join(rng.choices(syllables, k=3)) for _ in range(max(1, tokens // 4)))


async def chat(port: int, prompt: str, output_tokens: int, *, model: str = "tiny") -> Answer:
    """Send one streaming chat completion to 127.0.0.1 and follow it to its end; cancelling closes the connection."""
    body = json.dumps(
        {
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": output_tokens,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        started_s = time.monotonic()
        writer.write(head.encode() + body)
        return await _follow(reader, started_s)
    finally:
        writer.close()


async def _follow(reader: asyncio.StreamReader, started_s: float) -> Answer:
    status = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n", 1)[0]
    assert b" 200 " in status, status
    first_s: float | None = None
    last_s = started_s
    events = 0
    usage = {"prompt_tokens": 0, "completion_tokens": 0}
    finish_reason: str | None = None
    done = False
    async for data in _events(reader):
        arrived_s = time.monotonic()
        if data == b"[DONE]":
            done = True
            continue
        event = json.loads(data)
        assert "error" not in event, event
        usage = event.get("usage") or usage
        for choice in event["choices"]:
            finish_reason = choice["finish_reason"] or finish_reason
            if choice["delta"].get("content"):
                events += 1
                first_s, last_s = first_s if first_s is not None else arrived_s, arrived_s
    assert first_s is not None, "the stream ended without text"
    return Answer(
        ttft_s=first_s - started_s,
        e2e_s=last_s - started_s,
        events=events,
        prompt_tokens=usage["prompt_tokens"],
        completion_tokens=usage["completion_tokens"],
        finish_reason=finish_reason,
        done=done,
    )


async def _events(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Payloads of the `data:` lines of a chunked body."""
    pending = b""
    while size := int(await reader.readline(), 16):
        pending += (await reader.readexactly(size + 2))[:-2]
        *lines, pending = pending.split(b"\n")
        for line in lines:
            if line.startswith(b"data: "):
                yield line[6:].strip()


async def hold_level(
    port: int, *, users: int, requests: int, prompt_tokens: int, output_tokens: int, seed: int = 0
) -> list[Answer]:
    """Answers of `requests` counted requests while exactly `users` are in flight; two turns each are warm-up."""
    rng = random.Random(seed)
    alone = await chat(port, make_prompt(rng, prompt_tokens), output_tokens)
    numbers = itertools.count(-2 * users)
    counted: list[Answer] = []
    finished = asyncio.Event()

    async def user() -> None:
        await asyncio.sleep(rng.uniform(0.0, alone.e2e_s * users))
        while True:
            number = next(numbers)
            answer = await chat(port, make_prompt(rng, prompt_tokens), output_tokens)
            if 0 <= number < requests:
                counted.append(answer)
            if len(counted) == requests:
                finished.set()

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(user()) for _ in range(users)]
        await finished.wait()
        for task in tasks:
            task.cancel()
    return counted

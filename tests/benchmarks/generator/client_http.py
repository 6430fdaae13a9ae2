"""A general-purpose client in its best plain form: client_http.py LIBRARY PORT STREAMS SECONDS. Prints one JSON line.

One shared client with enough connections, one task a stream, on uvloop, events found in the lines of the body; this is
what one writes with these libraries. Runs in an environment with the library and uvloop only.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from collections.abc import AsyncIterator, Callable

import uvloop

BODY = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "hello"}]}
Lines = Callable[[], AsyncIterator[bytes]]


class Stamps:
    def __init__(self) -> None:
        self.ttft_s: list[float] = []
        self.gaps_s: list[float] = []

    async def follow(self, lines: Lines) -> None:
        started_s = last_s = time.monotonic()
        first = True
        async for line in lines():
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if event["choices"] and event["choices"][0]["delta"].get("content"):
                now_s = time.monotonic()
                if first:
                    self.ttft_s.append(now_s - started_s)
                else:
                    self.gaps_s.append(now_s - last_s)
                first, last_s = False, now_s


async def with_httpx(url: str, streams: int, until_s: float, stamps: Stamps) -> None:
    import httpx

    limits = httpx.Limits(max_connections=streams, max_keepalive_connections=streams)
    async with httpx.AsyncClient(timeout=60.0, limits=limits) as client:

        async def lines() -> AsyncIterator[bytes]:
            async with client.stream("POST", url, json=BODY) as response:
                async for line in response.aiter_lines():
                    yield line.encode()

        await hold(streams, until_s, stamps, lines)


async def with_aiohttp(url: str, streams: int, until_s: float, stamps: Stamps) -> None:
    import aiohttp

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=streams)) as session:

        async def lines() -> AsyncIterator[bytes]:
            async with session.post(url, json=BODY) as response:
                async for line in response.content:
                    yield line

        await hold(streams, until_s, stamps, lines)


async def hold(streams: int, until_s: float, stamps: Stamps, lines: Lines) -> None:
    async def user(delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        while time.monotonic() < until_s:
            await stamps.follow(lines)

    tasks = [asyncio.create_task(user(0.3 * index / streams)) for index in range(streams)]
    await asyncio.wait(tasks, timeout=until_s + 5.0 - time.monotonic())
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def quantile(values: list[float], share: float) -> float | None:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else None


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    library, port, streams, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    run = {"httpx": with_httpx, "aiohttp": with_aiohttp}[library]
    stamps, before_s = Stamps(), cpu_s()
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(url, streams, time.monotonic() + seconds, stamps))
    result = {
        "requests": len(stamps.ttft_s),
        "events": len(stamps.ttft_s) + len(stamps.gaps_s),
        "ttft_p50_s": quantile(stamps.ttft_s, 0.5),
        "ttft_p99_s": quantile(stamps.ttft_s, 0.99),
        "itl_p99_s": quantile(stamps.gaps_s, 0.99),
        "cpu_s": cpu_s() - before_s,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

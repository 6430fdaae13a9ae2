"""CPU of the timed client per stream event, in memory: what is left is ours (parser, decoder, stamps).

python tests/benchmarks/bench_client_event_cost.py [events]
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.wire import FINISH, USAGE, MemoryTransport, chunk, head, probe

from calibrator.backends.http1 import Http1Connection, Timeouts
from calibrator.backends.openai_answer import Answer


async def cost_us(events: list[bytes]) -> float:
    """Each event in a read and a chunk of its own, as an idle engine sends them."""
    framed = [b"%x\r\n%b\r\n" % (len(part), part) for part in events]
    connection = Http1Connection(time.monotonic, Timeouts(5.0, 300.0, 300.0))
    MemoryTransport(connection)
    answer = Answer(probe(), lambda _flight: None, 0.0)
    exchange = asyncio.create_task(connection.exchange(b"x", answer, 0.0))
    await asyncio.sleep(0)
    connection.data_received(head("200 OK", "text/event-stream", "Transfer-Encoding: chunked"))
    begun = time.process_time()
    for data in framed:
        connection.data_received(data)
    spent = time.process_time() - begun
    for part in (FINISH, USAGE):
        connection.data_received(b"%x\r\n%b\r\n" % (len(part), part))
    connection.data_received(b"0\r\n\r\n")
    sample = answer.sample(await exchange)
    if not sample.completed or sample.token_events != len(events):
        raise SystemExit(f"lost events: {sample}")
    return spent / len(events) * 1e6


async def main(count: int) -> None:
    spaced = (
        b"data: " + json.dumps({"choices": [{"delta": {"content": "x"}, "finish_reason": None}]}).encode() + b"\n\n"
    )
    shapes = {
        "content": [chunk({"content": f" word{index}"}) for index in range(count)],
        "content, blanks in the JSON": [spaced] * count,
        "usage in every chunk (decoded)": [chunk({"content": "x"}, usage={"completion_tokens": 1})] * count,
        "reasoning only (decoded)": [chunk({"reasoning": "x"})] * count,
    }
    for name, events in shapes.items():
        best = min([await cost_us(events) for _ in range(3)])
        print(f"{name:34} {best:6.2f} us/event  ({count} events)")


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 50_000))

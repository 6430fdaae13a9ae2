"""Does an answer arrive as it is made, or does something on the way hold it back?

A proxy that buffers hands on a whole answer, or a few KB of it, in one piece. Then the first token comes with the last,
or with the last of its piece: the gaps are zero and the time to first token is another. So the reads that brought
tokens are compared with the tokens:

    held back     one read for several tokens, or `EVENTS_PER_READ` token events a read

An engine that puts several tokens into one event is another matter: its events come one by one. One answer is not
enough, for a fast model and a busy machine can put a few events into one read; a stub answers at once, whatever is
asked for. So where the short probe looks held back, short and long answers are asked for in turn (`ROUNDS` of each):
something buffers if every one of them was held back, and every long one took longer to make than every short one.

Our own process may have slept while the events came one by one. So it is timed beside each answer how late a timer of
the same event loop fires: an answer that took less than `LATENESS_FACTOR` times that says nothing, and ends the matter
in the server's favour.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from calibrator.core.records.objective import Metric
from calibrator.core.records.sample import Sample
from calibrator.ports.backend import Blindness, Unmeasurable

LEAST_TOKENS = 4
EVENTS_PER_READ = 3.0
SHORT_TOKENS = 8
LONG_TOKENS = 32
ROUNDS = 2
LEAST_S_PER_TOKEN = 1e-3  # faster answers may come in one read by themselves, and buffering hardly changes them
TICK_S = 0.005
LATENESS_FACTOR = 4.0
STREAM_METRICS = (Metric.TTFT, Metric.TTFC, Metric.ITL, Metric.TPOT)

_CAUSE = "Answers arrive in one piece or in a few, not token by token: something between us and the engine buffers."
_REMEDY = (
    "Turn that off: nginx 'proxy_buffering off' (and no gzip for text/event-stream), or the header "
    "'X-Accel-Buffering: no' from the engine; HAProxy 'option http-no-delay', no 'http-response wait-for-body', no "
    "compression; Envoy no ext_proc with response_body_mode BUFFERED and no compressor on this route. Or give the "
    "engine's own address, or judge e2e."
)


def is_held_back(sample: Sample) -> bool:
    """Whether this answer came in one piece, or in few."""
    if not sample.completed or not sample.token_reads:
        return False
    tokens = max(sample.token_events, sample.completion_tokens or 0)
    if sample.token_reads == 1:
        return tokens >= LEAST_TOKENS
    return sample.token_events >= EVENTS_PER_READ * sample.token_reads


async def held_back(first: Sample, send: Callable[[int], Awaitable[Sample]]) -> tuple[Unmeasurable, ...]:
    """`first`: of `SHORT_TOKENS`; `send` asks for an answer of so many. Empty: answers arrive as they are made."""
    if not is_held_back(first):
        return ()
    short_s: list[float] = []
    long_s: list[float] = []
    more_tokens = LONG_TOKENS - SHORT_TOKENS
    for _ in range(ROUNDS):
        for tokens, durations in ((LONG_TOKENS, long_s), (SHORT_TOKENS, short_s)):
            sample, lateness_s = await _watched(send(tokens))
            if not is_held_back(sample) or sample.duration_s < LATENESS_FACTOR * lateness_s:
                return ()
            durations.append(sample.duration_s)
            if tokens == LONG_TOKENS:
                made = max(sample.token_events, sample.completion_tokens or 0)
                more_tokens = min(more_tokens, made - max(first.token_events, first.completion_tokens or 0))
    if more_tokens <= 0 or min(long_s) - max(short_s) < more_tokens * LEAST_S_PER_TOKEN:
        return ()
    return tuple(Unmeasurable(metric, Blindness.BUFFERED, _CAUSE, _REMEDY) for metric in STREAM_METRICS)


async def _watched(answer: Awaitable[Sample]) -> tuple[Sample, float]:
    """The answer, and how late this event loop was at most while it came, in seconds."""
    loop = asyncio.get_running_loop()
    worst_s, due_s = 0.0, loop.time() + TICK_S

    async def tick() -> None:
        nonlocal worst_s, due_s
        while True:
            await asyncio.sleep(due_s - loop.time())
            worst_s, due_s = max(worst_s, loop.time() - due_s), loop.time() + TICK_S

    ticking = asyncio.create_task(tick())
    try:
        return await answer, max(worst_s, loop.time() - due_s)  # a tick may be overdue when the answer ends
    finally:
        ticking.cancel()
        with suppress(asyncio.CancelledError):
            await ticking

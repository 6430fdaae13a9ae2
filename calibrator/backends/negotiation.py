"""Which of a probe's parameters does a server take? Asked at the preflight, one request after the other.

    all of them ──▶ refused, one of them named ──▶ without it (or renamed) ──▶ again, until nothing is refused
                └─▶ refused, none named ─────────▶ without all, then each put back in turn; what passes stays

| parameter | without it |
|---|---|
| `stream_options` | usage may still come by itself; else no token is counted |
| `ignore_eos`, `min_tokens` | answers end where the model likes; the lengths achieved decide whether that matters |
| `temperature` | the server's own default |
| `max_tokens` | never left out: sent as `max_completion_tokens`, its name for reasoning models |

Each step changes one parameter, so there are few. Servers name the parameter in their own words (`'max_tokens' is not
supported with this model`, `extra_forbidden ... body.ignore_eos`, `Unknown name "min_tokens"`, `got an unexpected
keyword argument`); what they have in common is the name itself. Another failure ends it: credentials, the model's name
and load are the caller's business.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence

from calibrator.core.records.sample import Failure, FailureKind, Sample
from calibrator.ports.backend import Adjustment

MAX_TRIES = 12
LENGTH = "max_tokens"
LENGTH_ELSEWHERE = "max_completion_tokens"
OPTIONAL = ("stream_options", "ignore_eos", "min_tokens", "temperature")
FORCING = ("ignore_eos", "min_tokens")
_REFUSED = (400, 422)
_OTHERWISE_CLEAR = (401, 403, 404, 429, 503, 529)

Send = Callable[[tuple[Adjustment, ...]], Awaitable[Sample]]


async def negotiate(send: Send, *, stream: bool) -> tuple[Sample, tuple[Adjustment, ...]]:
    """The first answer that is no refusal of a parameter, or the last refusal; and what it took."""
    adjustments: tuple[Adjustment, ...] = ()
    sample = await send(adjustments)
    tries = 1
    while tries < MAX_TRIES and sample.failure is not None:
        step = _named(sample.failure, adjustments)
        if step is None:
            break
        adjustments = (*adjustments, step)
        sample = await send(adjustments)
        tries += 1
    if sample.failure is None or sample.failure.status not in _REFUSED:
        return sample, adjustments
    return await _without_words(send, sample, adjustments, stream=stream)


def _named(failure: Failure, adjustments: Sequence[Adjustment]) -> Adjustment | None:
    """The next step that the server's words ask for."""
    if failure.kind not in (FailureKind.STATUS, FailureKind.ERROR_EVENT) or failure.status in _OTHERWISE_CLEAR:
        return None
    done = {one.parameter for one in adjustments}
    words = failure.detail
    if LENGTH not in done and _names(words, LENGTH) and _names(words, LENGTH_ELSEWHERE):
        return Adjustment(LENGTH, LENGTH_ELSEWHERE)
    for parameter in OPTIONAL:
        if parameter not in done and _names(words, parameter):
            return Adjustment(parameter)
    if LENGTH not in done and _names(words, LENGTH) and _REFUSES_A_NAME.search(words):
        return Adjustment(LENGTH, LENGTH_ELSEWHERE)
    return None


_REFUSES_A_NAME = re.compile(
    r"un(supported|known|recognized|recognised|expected)|not (supported|permitted|allowed)|extra", re.IGNORECASE
)


def _names(words: str, parameter: str) -> bool:
    return re.search(rf"(?<![A-Za-z0-9_]){parameter}(?![A-Za-z0-9_])", words) is not None


async def _without_words(
    send: Send, refused: Sample, adjustments: tuple[Adjustment, ...], *, stream: bool
) -> tuple[Sample, tuple[Adjustment, ...]]:
    """The server refuses and does not say what: everything optional is left out, then put back one by one."""
    known = {one.parameter for one in adjustments}
    dropped = [Adjustment(name) for name in OPTIONAL if name not in known and (stream or name != "stream_options")]
    renamed = () if LENGTH in known else ((Adjustment(LENGTH, LENGTH_ELSEWHERE),),)
    sample, bare = refused, adjustments
    for length in ((), *renamed):
        bare = (*adjustments, *length, *dropped)
        sample = await send(bare)
        if sample.failure is None:
            break
    if sample.failure is not None:
        return refused, adjustments
    for one in dropped:
        fuller = tuple(kept for kept in bare if kept != one)
        answer = await send(fuller)
        if answer.failure is None:
            sample, bare = answer, fuller
    return sample, bare

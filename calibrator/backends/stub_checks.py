"""The requests behind `core.workload.stub_detection`: at most `MAX_REQUESTS`, one after the other, before a sweep.

    rounds    a short prompt, then a long one, each new from its first word; 3 to 5, until the price is clear
    repeats   the last short prompt twice more, letter by letter

The long prompt is the longest that the context allows, because the difference to detect (as little as half a
microsecond a token) would otherwise drown in network jitter; but no longer than what the model is expected to read in
`LONG_PROMPT_S`, because users may be waiting behind it. A request that fails ends the check silently: failures are
reported by the other preflight probes and by the sweep.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from calibrator.core.records.sample import Sample
from calibrator.core.workload.classes import TokenScale, make_text
from calibrator.core.workload.stub_detection import LEAST, CheckAnswer, Reading, StubCheck, read_price

ROUNDS = 5
REPEATS = 2
MAX_REQUESTS = 2 * ROUNDS + REPEATS
CHECK_TOKENS = 5  # of each answer: four gaps tell decoding from replaying
SHORT_WORDS = 16
MAX_LONG_TOKENS = 16_384
LONG_PROMPT_S = 0.25
PATIENCE_S = 4.0  # no further round after this ...
HARD_PATIENCE_S = 12.0  # ... and not even the first three after this

Send = Callable[[str, int], Awaitable[Sample]]  # text, output tokens


@dataclass(frozen=True, slots=True)
class StubCheckPlan:
    """`long_tokens`: what the context allows; `slope_s`: estimated seconds a prompt token, 0.0 if it seems free."""

    scale: TokenScale
    long_tokens: int
    slope_s: float = 0.0

    @property
    def long_words(self) -> int:
        affordable = MAX_LONG_TOKENS if self.slope_s <= 0.0 else min(MAX_LONG_TOKENS, LONG_PROMPT_S / self.slope_s)
        return max(2 * SHORT_WORDS, self.scale.words_for(int(min(self.long_tokens, affordable))))


async def run_stub_checks(send: Send, now: Callable[[], float], rng: random.Random, plan: StubCheckPlan) -> StubCheck:
    """Empty if a request failed."""
    short: list[CheckAnswer] = []
    long: list[CheckAnswer] = []
    started_s, text = now(), ""
    for index in range(ROUNDS):
        waited_s = now() - started_s
        if waited_s > HARD_PATIENCE_S or (index >= LEAST and waited_s > PATIENCE_S):
            break
        for words, found in ((SHORT_WORDS, short), (plan.long_words, long)):
            prompt = make_text(rng, words)
            text = prompt if found is short else text
            check = await _check(send, prompt, words)
            if check is None:
                return StubCheck()
            found.append(check)
        if read_price(StubCheck(short, long)) is Reading.GROWS:
            break
    repeats = [check for _ in range(REPEATS) if (check := await _check(send, text, SHORT_WORDS)) is not None]
    return StubCheck(short, long, repeats)


async def _check(send: Send, text: str, words: int) -> CheckAnswer | None:
    sample = await send(text, CHECK_TOKENS)
    if not sample.completed:
        return None
    decoding_s = None
    if sample.ttft_s is not None and sample.last_token_s is not None and sample.token_events > 1:
        decoding_s = sample.last_token_s - sample.ttft_s
    return CheckAnswer(sample.prompt_tokens or words, sample.duration_s, decoding_s, sample.cached_tokens)

"""The probe traffic: classes of requests, and prompts of a wanted length without a tokenizer.

Stratification: classes are dealt by largest remainder, so that every block of requests carries the same mix; otherwise
the violations of a level would be the sampling noise of the mix.

Length: a prompt of w words costs `overhead + per_word * w` tokens. The two numbers are fitted from the server's own
`usage.prompt_tokens` for a short and a long prompt (`TokenScale.fit`), so no tokenizer is downloaded.

Uniqueness: every prompt starts with a nonce, so it differs from its first token on; prefix caches then cannot turn a
measurement of the model into one of the cache.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

from calibrator.core.sample import Label, ProbeRequest
from calibrator.errors import ConfigurationError

TAIL_CUT_SIGMAS = 3.0  # lognormal prompts are cut here, so that the longest one is known before the sweep

# Short, common, lower-case words: one or two tokens each in every tokenizer we know; the scale is fitted anyway.
_WORDS = (  # noqa: SIM905 - eighty quoted words are harder to read
    "time year people way day man thing woman life child world school state family student group country problem hand "
    "part place case week company system program question work number night point home water room mother area money "
    "story fact month lot right study book eye job word business issue side kind head house service friend father "
    "power hour game line end member law car city community name president team minute idea body information back"
).split()


@dataclass(frozen=True, slots=True)
class WorkloadClass:
    """One kind of request. Token counts are fixed, or spread uniformly by +- `spread_ratio` around the value.

    `prompt_sigma` above 0: prompt lengths have a heavy tail instead, lognormal around the median `prompt_tokens` and cut
    at three sigma. Real prompts do; their tail is what the P99 of the time to first token is made of.
    """

    name: str = "default"
    share: float = 1.0
    prompt_tokens: int = 256
    output_tokens: int = 64
    stream: bool = True
    spread_ratio: float = 0.0
    prompt_sigma: float = 0.0  # of the prompt length's logarithm

    def __str__(self) -> str:
        mode = "" if self.stream else ", not streamed"
        spread = f" +-{self.spread_ratio:.0%}" if self.spread_ratio else ""
        tail = f", prompts lognormal (sigma {self.prompt_sigma:g})" if self.prompt_sigma else ""
        return f"{self.prompt_tokens}+{self.output_tokens} tokens{spread}{tail}{mode}"

    @property
    def longest_prompt_tokens(self) -> int:
        if self.prompt_sigma:
            return round(self.prompt_tokens * math.exp(TAIL_CUT_SIGMAS * self.prompt_sigma))
        return round(self.prompt_tokens * (1 + self.spread_ratio))


@dataclass(frozen=True, slots=True)
class Workload:
    """A mix of classes; shares are relative."""

    classes: tuple[WorkloadClass, ...] = (WorkloadClass(),)

    def __post_init__(self) -> None:
        if not self.classes:
            raise ConfigurationError("The workload has no class.", "Give at least one with prompt and output tokens.")
        for cls in self.classes:
            counts = cls.prompt_tokens >= 1 and cls.output_tokens >= 1
            if not (cls.share > 0 and counts and 0 <= cls.spread_ratio < 1 and 0 <= cls.prompt_sigma <= 2):
                raise ConfigurationError(
                    f"Workload class '{cls.name}' is impossible ({cls}, share {cls.share:g}).",
                    "Shares must be above 0, token counts at least 1, spread within 0..1, prompt sigma within 0..2.",
                )

    def __str__(self) -> str:
        total = sum(cls.share for cls in self.classes)
        return "; ".join(f"{cls.share / total:.0%} {cls}" for cls in self.classes)

    @property
    def longest(self) -> WorkloadClass:
        return max(self.classes, key=lambda cls: cls.longest_prompt_tokens + cls.output_tokens * (1 + cls.spread_ratio))


@dataclass(frozen=True, slots=True)
class TokenScale:
    """Tokens of a prompt of w words: overhead + per_word * w."""

    overhead: float = 8.0
    per_word: float = 1.0

    @staticmethod
    def fit(short: tuple[int, int], long: tuple[int, int]) -> TokenScale:
        """From two (words, prompt_tokens) pairs. Falls back to one token a word where they do not grow."""
        words = long[0] - short[0]
        tokens = long[1] - short[1]
        if words <= 0 or tokens <= 0:
            return TokenScale()
        per_word = tokens / words
        return TokenScale(overhead=max(0.0, short[1] - per_word * short[0]), per_word=per_word)

    def words_for(self, tokens: int) -> int:
        return max(1, round((tokens - self.overhead) / self.per_word))


def make_text(rng: random.Random, words: int) -> str:
    """`words` words, the first of which is a nonce that makes the prompt unique from its first token."""
    nonce = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=8))
    return " ".join([nonce, *rng.choices(_WORDS, k=max(0, words - 1))])


@dataclass(slots=True)
class PromptFactory:
    """Deals the next request (port `PromptSource`). Seeded: the same seed gives the same requests."""

    workload: Workload
    scale: TokenScale
    seed: int
    gap_quantiles: tuple[float, ...] = (0.5, 0.9, 0.99)
    first_id: int = 0
    id_step: int = 1  # workers of one generator interleave their ids
    _rng: random.Random = field(init=False)
    _debt: list[float] = field(init=False)
    _next_id: int = field(init=False)

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)
        self._debt = [0.0] * len(self.workload.classes)
        self._next_id = self.first_id

    def next_size(self, *, residual: bool = False) -> tuple[WorkloadClass, int, int]:
        """Class, prompt and output tokens of the next request, without its text."""
        cls = self._deal()
        output_tokens = self._spread(cls.output_tokens, cls)
        if residual:  # users that join a running level are met in mid-answer, so that long outputs do not start in step
            output_tokens = max(1, round(output_tokens * self._rng.random()))
        return cls, self._prompt_tokens(cls), output_tokens

    def next_request(self, label: Label, *, residual: bool) -> ProbeRequest:
        cls, prompt_tokens, output_tokens = self.next_size(residual=residual)
        request = ProbeRequest(
            request_id=self._next_id,
            label=label,
            class_name=cls.name,
            text=make_text(self._rng, self.scale.words_for(prompt_tokens)),
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            stream=cls.stream,
            gap_quantiles=self.gap_quantiles,
        )
        self._next_id += self.id_step
        return request

    def _deal(self) -> WorkloadClass:
        classes = self.workload.classes
        total = sum(cls.share for cls in classes)
        for index, cls in enumerate(classes):
            self._debt[index] += cls.share / total
        chosen = max(range(len(classes)), key=lambda index: self._debt[index])
        self._debt[chosen] -= 1.0
        return classes[chosen]

    def _prompt_tokens(self, cls: WorkloadClass) -> int:
        if not cls.prompt_sigma:
            return self._spread(cls.prompt_tokens, cls)
        deviation = max(-TAIL_CUT_SIGMAS, min(TAIL_CUT_SIGMAS, self._rng.gauss(0.0, 1.0)))
        return max(1, round(cls.prompt_tokens * math.exp(cls.prompt_sigma * deviation)))

    def _spread(self, tokens: int, cls: WorkloadClass) -> int:
        if not cls.spread_ratio:
            return tokens
        return max(1, round(tokens * (1 + cls.spread_ratio * (2 * self._rng.random() - 1))))

"""The probe traffic: classes of requests, and prompts of a wanted length without a tokenizer.

Stratification: classes are dealt by largest remainder, so that every block of requests carries the same mix; otherwise
the violations of a level would be the sampling noise of the mix. A class with recorded `sizes` (a trace) is a deck of
cards: shuffled by the seed, dealt to its end, shuffled again. The deck itself is stratified by prompt length: it is cut
into tenths, and a card that is the j-th of its tenth lies near j / (cards of the tenth), so that short stretches of the
deck look like the whole.

Length: a prompt of w words costs `overhead + per_word * w` tokens. The two numbers are fitted from the server's own
`usage.prompt_tokens` for a short and a long prompt (`TokenScale.fit`), so no tokenizer is downloaded.

Uniqueness: every prompt starts with a nonce, so it differs from its first token on; prefix caches then cannot turn a
measurement of the model into one of the cache. Nonces depend on `salt` (the sweep's id), sizes and order only on the
seed: a second sweep with the same seed sends the same traffic, and finds nothing of the first in a cache.

Prefix reuse: for a wanted ratio r a prompt of w words is r * w words of a shared prefix, then its nonce, then words of
its own. The prefixes come from a pool of `PREFIX_POOL`, each as long as the longest prompt needs; a shorter prompt
takes the head of one, so all that draw the same entry share what they have. The first use of an entry is a miss, and
engines cache whole blocks (16 to 128 tokens), so a little less than r is achieved; it is measured and reported.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from calibrator.core.records.sample import Label, ProbeRequest
from calibrator.errors import ConfigurationError

TAIL_CUT_SIGMAS = 3.0  # lognormal prompts are cut here, so that the longest one is known before the sweep
STRATA = 10  # tenths of a trace, by prompt length
PREFIX_POOL = 8  # several, as users have several system prompts; few, so that all of them stay in an engine's cache
MAX_PREFIX_REUSE = 0.95  # the rest must hold at least a nonce

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

    `prompt_sigma` above 0: prompt lengths have a heavy tail instead, lognormal around the median `prompt_tokens`,
    cut at three sigma. Real prompts do; their tail is what the P99 of the time to first token is made of.
    """

    name: str = "default"
    share: float = 1.0
    prompt_tokens: int = 256
    output_tokens: int = 64
    stream: bool = True
    spread_ratio: float = 0.0
    prompt_sigma: float = 0.0  # of the prompt length's logarithm
    max_prompt_tokens: int | None = None  # longer prompts are cut to it, as users' are where a context is full
    sizes: tuple[tuple[int, int], ...] = ()  # recorded (prompt, output) tokens, instead of the distributions above

    @staticmethod
    def recorded(name: str, sizes: Sequence[tuple[int, int]], *, stream: bool) -> WorkloadClass:
        """A class of a trace; its share is its number of requests, its token counts are the means."""
        prompt_tokens = round(sum(prompt for prompt, _ in sizes) / len(sizes))
        output_tokens = round(sum(output for _, output in sizes) / len(sizes))
        return WorkloadClass(name, float(len(sizes)), prompt_tokens, output_tokens, stream, sizes=tuple(sizes))

    def __str__(self) -> str:
        mode = "" if self.stream else ", not streamed"
        if (share := self.cut_share) > 0.0:
            mode = f", prompts cut at {self.max_prompt_tokens} ({share:.2g} of them){mode}"
        if self.sizes:
            return f"{self.prompt_tokens}+{self.output_tokens} tokens (mean of {len(self.sizes)} recorded){mode}"
        spread = f" +-{self.spread_ratio:.0%}" if self.spread_ratio else ""
        tail = f", prompts lognormal (sigma {self.prompt_sigma:g})" if self.prompt_sigma else ""
        return f"{self.prompt_tokens}+{self.output_tokens} tokens{spread}{tail}{mode}"

    @property
    def longest_prompt_tokens(self) -> int:
        if self.sizes:
            return max(self.within(prompt) for prompt, _ in self.sizes)
        if self.prompt_sigma:
            return self.within(round(self.prompt_tokens * math.exp(TAIL_CUT_SIGMAS * self.prompt_sigma)))
        return self.within(round(self.prompt_tokens * (1 + self.spread_ratio)))

    def within(self, prompt_tokens: int) -> int:
        """A drawn length, cut."""
        return prompt_tokens if self.max_prompt_tokens is None else min(prompt_tokens, self.max_prompt_tokens)

    @property
    def cut_share(self) -> float:
        """Of the prompts, that are cut."""
        limit = self.max_prompt_tokens
        if limit is None:
            return 0.0
        if self.sizes:
            return sum(prompt > limit for prompt, _ in self.sizes) / len(self.sizes)
        if self.prompt_sigma:
            deviation = math.log(limit / self.prompt_tokens) / self.prompt_sigma
            return 0.0 if deviation >= TAIL_CUT_SIGMAS else 1.0 - _normal_below(deviation)
        low, high = self.prompt_tokens * (1 - self.spread_ratio), self.prompt_tokens * (1 + self.spread_ratio)
        return float(limit < low) if low == high else min(1.0, max(0.0, (high - limit) / (high - low)))

    @property
    def longest_total_tokens(self) -> int:
        """Most tokens of context that one request can need."""
        if self.sizes:
            return max(self.within(prompt) + output for prompt, output in self.sizes)
        return self.longest_prompt_tokens + round(self.output_tokens * (1 + self.spread_ratio))

    @property
    def mean_prompt_tokens(self) -> float:
        """Of what is sent; differs from `prompt_tokens`, the median, where a tail is heavy.

        Cut at c: a lognormal m exp(s^2 / 2) Phi(k - s) + c (1 - Phi(k)) with k = ln(c / m) / s, a uniform one over a..b
        m - (b - c)^2 / (2 (b - a)).
        """
        median, sigma, limit = self.prompt_tokens, self.prompt_sigma, self.max_prompt_tokens
        mean = median * math.exp(0.5 * sigma**2)
        if limit is None or self.cut_share == 0.0:
            return mean
        if self.sizes:
            return sum(self.within(prompt) for prompt, _ in self.sizes) / len(self.sizes)
        if sigma:
            k = math.log(limit / median) / sigma
            return mean * _normal_below(k - sigma) + limit * (1.0 - _normal_below(k))
        spread = self.spread_ratio * median
        return limit if limit <= median - spread else median - (median + spread - limit) ** 2 / (4.0 * spread)

    def share_within(self, applies_to: Callable[[int], bool]) -> float:
        """Share of this class's prompts whose length the predicate accepts; a distribution counts as its middle."""
        if not self.sizes:
            return float(applies_to(self.within(self.prompt_tokens)))
        return sum(applies_to(self.within(prompt)) for prompt, _ in self.sizes) / len(self.sizes)


def _normal_below(deviation: float) -> float:
    return 0.5 * math.erfc(-deviation / math.sqrt(2.0))


@dataclass(frozen=True, slots=True)
class Workload:
    """A mix of classes; shares are relative."""

    classes: tuple[WorkloadClass, ...] = (WorkloadClass(),)
    prefix_reuse_ratio: float = 0.0  # of the prompt tokens, to be found in the engine's prefix cache

    def __post_init__(self) -> None:
        if not self.classes:
            raise ConfigurationError("The workload has no class.", "Give at least one with prompt and output tokens.")
        if not 0.0 <= self.prefix_reuse_ratio <= MAX_PREFIX_REUSE:
            raise ConfigurationError(
                f"A prefix reuse of {self.prefix_reuse_ratio:g} is impossible.", f"Give 0 to {MAX_PREFIX_REUSE}."
            )
        for cls in self.classes:
            counts = cls.prompt_tokens >= 1 and cls.output_tokens >= 1
            if not (cls.share > 0 and counts and 0 <= cls.spread_ratio < 1 and 0 <= cls.prompt_sigma <= 2):
                raise ConfigurationError(
                    f"Workload class '{cls.name}' is impossible ({cls}, share {cls.share:g}).",
                    "Shares must be above 0, token counts at least 1, spread within 0..1, prompt sigma within 0..2.",
                )

    def __str__(self) -> str:
        total = sum(cls.share for cls in self.classes)
        mix = "; ".join(f"{cls.share / total:.0%} {cls}" for cls in self.classes)
        return f"{mix}; {self.prefix_reuse_ratio:.0%} of the prompt shared" if self.prefix_reuse_ratio else mix

    def cut(self, max_prompt_tokens: int | None) -> Workload:
        """The same with no prompt longer than that; None: as it is."""
        if max_prompt_tokens is None:
            return self
        classes = tuple(replace(cls, max_prompt_tokens=max_prompt_tokens) for cls in self.classes)
        return replace(self, classes=classes)

    @property
    def longest(self) -> WorkloadClass:
        return max(self.classes, key=lambda cls: cls.longest_total_tokens)

    @property
    def longest_prompt_tokens(self) -> int:
        return max(cls.longest_prompt_tokens for cls in self.classes)


def prompt_lengths(workload: Workload, n: int = 1000) -> tuple[int, ...]:
    """A sample of what the probes of a workload will be, in tokens."""
    factory = PromptFactory(workload, TokenScale(), seed=1)
    return tuple(factory.next_size()[1] for _ in range(n))


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
    return " ".join([_nonce(rng), *rng.choices(_WORDS, k=max(0, words - 1))])


def _nonce(rng: random.Random) -> str:
    return "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=8))


@dataclass(slots=True)
class PromptFactory:
    """Deals the next request (port `PromptSource`). Seeded: the same seed gives the same requests."""

    workload: Workload
    scale: TokenScale
    seed: int
    gap_quantiles: tuple[float, ...] = (0.5, 0.9, 0.99)
    first_id: int = 0
    id_step: int = 1  # workers of one generator interleave their ids
    salt: str = ""  # of nonces and shared prefixes: another one for each sweep
    _rng: random.Random = field(init=False)
    _nonces: random.Random = field(init=False)
    _debt: list[float] = field(init=False)
    _decks: list[list[tuple[int, int]]] = field(init=False)  # by class: recorded sizes not dealt yet, the next one last
    _prefixes: tuple[list[str], ...] = field(init=False)
    _next_id: int = field(init=False)

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)
        self._nonces = random.Random(f"{self.salt}-{self.seed}")
        self._debt = [0.0] * len(self.workload.classes)
        self._decks = [[] for _ in self.workload.classes]
        self._prefixes = self._make_prefixes()
        self._next_id = self.first_id

    def next_size(self, *, residual: bool = False) -> tuple[WorkloadClass, int, int]:
        """Class, prompt and output tokens of the next request, without its text."""
        index = self._deal()
        cls = self.workload.classes[index]
        if cls.sizes:
            prompt_tokens, output_tokens = self._draw_card(index)
            prompt_tokens = cls.within(prompt_tokens)
        else:
            prompt_tokens, output_tokens = cls.within(self._prompt_tokens(cls)), self._spread(cls.output_tokens, cls)
        if residual:  # users that join a running level are met in mid-answer, so that long outputs do not start in step
            output_tokens = max(1, round(output_tokens * self._rng.random()))
        return cls, prompt_tokens, output_tokens

    def next_request(self, label: Label, *, residual: bool) -> ProbeRequest:
        cls, prompt_tokens, output_tokens = self.next_size(residual=residual)
        request = ProbeRequest(
            request_id=self._next_id,
            label=label,
            class_name=cls.name,
            text=self._text(self.scale.words_for(prompt_tokens)),
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            stream=cls.stream,
            gap_quantiles=self.gap_quantiles,
        )
        self._next_id += self.id_step
        return request

    # -------------------------------------------------------------------------------------------------- sizes
    def _deal(self) -> int:
        classes = self.workload.classes
        total = sum(cls.share for cls in classes)
        for index, cls in enumerate(classes):
            self._debt[index] += cls.share / total
        chosen = max(range(len(classes)), key=lambda index: self._debt[index])
        self._debt[chosen] -= 1.0
        return chosen

    def _draw_card(self, index: int) -> tuple[int, int]:
        if not self._decks[index]:
            self._decks[index] = self._shuffled(self.workload.classes[index].sizes)
        return self._decks[index].pop()

    def _shuffled(self, sizes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Every size once, each stretch of the result with short and long prompts in proportion."""
        cards = sorted(sizes)
        strata = min(STRATA, len(cards))
        placed: list[tuple[float, tuple[int, int]]] = []
        for index in range(strata):
            stratum = cards[index * len(cards) // strata : (index + 1) * len(cards) // strata]
            self._rng.shuffle(stratum)
            placed.extend(((place + self._rng.random()) / len(stratum), card) for place, card in enumerate(stratum))
        return [card for _, card in sorted(placed)]

    def _prompt_tokens(self, cls: WorkloadClass) -> int:
        if not cls.prompt_sigma:
            return self._spread(cls.prompt_tokens, cls)
        deviation = max(-TAIL_CUT_SIGMAS, min(TAIL_CUT_SIGMAS, self._rng.gauss(0.0, 1.0)))
        return max(1, round(cls.prompt_tokens * math.exp(cls.prompt_sigma * deviation)))

    def _spread(self, tokens: int, cls: WorkloadClass) -> int:
        if not cls.spread_ratio:
            return tokens
        return max(1, round(tokens * (1 + cls.spread_ratio * (2 * self._rng.random() - 1))))

    # -------------------------------------------------------------------------------------------------- texts
    def _text(self, words: int) -> str:
        shared = min(words - 1, round(self.workload.prefix_reuse_ratio * words))
        head = self._rng.choice(self._prefixes)[:shared] if shared > 0 else []
        own = self._rng.choices(_WORDS, k=words - len(head) - 1)
        return " ".join([*head, _nonce(self._nonces), *own])

    def _make_prefixes(self) -> tuple[list[str], ...]:
        """Of the salt alone, so that workers of one sweep share them."""
        ratio = self.workload.prefix_reuse_ratio
        if not ratio:
            return ()
        rng = random.Random(f"{self.salt}-prefixes")
        words = math.ceil(ratio * self.scale.words_for(self.workload.longest_prompt_tokens))
        return tuple([_nonce(rng), *rng.choices(_WORDS, k=words)] for _ in range(PREFIX_POOL))

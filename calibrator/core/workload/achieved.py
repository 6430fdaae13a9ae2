"""Whether the probes were as intended: prompt and output lengths by class, and prefix cache hits.

Only counted, completed requests with the server's usage are used, because answers during a warm-up are shortened on
purpose. Intended lengths are summed over the same requests, so that a wide mix of lengths causes no difference.

| difference | warning |
|---|---|
| more than 10 % in mean prompt or output tokens, with at least `LEAST` requests | the cap holds for other traffic |
| cached tokens 10 points above the intended ratio (and beyond the template) | `suspect_cache` |
| cached tokens 10 points below it | the engine's cache is off or too small for the shared prefixes |
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from calibrator.core.records.sample import Phase, Sample
from calibrator.core.records.sweep import ClassAchieved
from calibrator.core.workload.classes import Workload
from calibrator.core.workload.stub_detection import CACHE_BLOCK_TOKENS

OFF_RATIO = 0.1
CACHED_OFF_RATIO = 0.1
LEAST = 30


@dataclass(slots=True)
class _Sums:
    prompts: int = 0  # requests whose prompt the server counted
    prompt_tokens: int = 0
    wanted_prompt_tokens: int = 0
    answers: int = 0
    output_tokens: int = 0
    wanted_output_tokens: int = 0


@dataclass(slots=True)
class AchievedLengths:
    """Sums over the ended requests of a whole sweep."""

    workload: Workload
    _by_class: dict[str, _Sums] = field(default_factory=dict)
    _cached_requests: int = 0
    _cached_tokens: int = 0
    _cacheable_tokens: int = 0

    def add(self, sample: Sample) -> None:
        if not sample.completed or sample.label.phase is not Phase.COUNTED:
            return
        sums = self._by_class.setdefault(sample.class_name, _Sums())
        if sample.prompt_tokens is not None:
            sums.prompts += 1
            sums.prompt_tokens += sample.prompt_tokens
            sums.wanted_prompt_tokens += sample.wanted_prompt_tokens
        if sample.completion_tokens is not None and sample.wanted_output_tokens is not None:
            sums.answers += 1
            sums.output_tokens += sample.completion_tokens
            sums.wanted_output_tokens += sample.wanted_output_tokens
        if sample.prompt_tokens and sample.cached_tokens is not None:
            self._cached_requests += 1
            self._cached_tokens += sample.cached_tokens
            self._cacheable_tokens += sample.prompt_tokens

    @property
    def cached_ratio(self) -> float | None:
        """Of all prompt tokens; None: the server does not report it."""
        return self._cached_tokens / self._cacheable_tokens if self._cacheable_tokens else None

    def classes(self) -> tuple[ClassAchieved, ...]:
        """In the workload's order, without classes that were never answered."""
        names = dict.fromkeys(cls.name for cls in self.workload.classes if cls.name in self._by_class)
        return tuple(_achieved(name, self._by_class[name]) for name in names)

    def warnings(self, template_tokens: float) -> tuple[str, ...]:
        """`template_tokens`: what the server adds to each prompt; those may be cached whatever we send."""
        return (*_length_warnings(self.classes()), *self._cache_warnings(template_tokens))

    def _cache_warnings(self, template_tokens: float) -> Iterator[str]:
        ratio, wanted = self.cached_ratio, self.workload.prefix_reuse_ratio
        if ratio is None or self._cached_requests < LEAST:
            return
        mean_tokens = self._cacheable_tokens / self._cached_requests
        rightly = wanted + (template_tokens + (0 if wanted else CACHE_BLOCK_TOKENS)) / mean_tokens
        if ratio > rightly + CACHED_OFF_RATIO:
            yield (
                f"suspect_cache: {ratio:.0%} of the prompt tokens came from a cache instead of {wanted:.0%}: "
                "something answers without reading the prompts."
            )
        elif ratio < wanted - CACHED_OFF_RATIO:
            yield (
                f"Only {ratio:.0%} of the prompt tokens came from the prefix cache instead of {wanted:.0%}: "
                "it is off, or too small for the shared prefixes."
            )


def _achieved(name: str, sums: _Sums) -> ClassAchieved:
    return ClassAchieved(
        name=name,
        requests=max(sums.prompts, sums.answers),
        prompt_tokens_wanted=_mean(sums.wanted_prompt_tokens, sums.prompts),
        prompt_tokens=_mean(sums.prompt_tokens, sums.prompts),
        output_tokens_wanted=_mean(sums.wanted_output_tokens, sums.answers),
        output_tokens=_mean(sums.output_tokens, sums.answers),
    )


def _length_warnings(classes: Sequence[ClassAchieved]) -> Iterator[str]:
    for cls in classes:
        for what, achieved, wanted in (
            ("prompts", cls.prompt_tokens, cls.prompt_tokens_wanted),
            ("answers", cls.output_tokens, cls.output_tokens_wanted),
        ):
            if cls.requests < LEAST or not achieved or not wanted or abs(achieved / wanted - 1) <= OFF_RATIO:
                continue
            yield (
                f"Class '{cls.name}': {what} had {achieved:.0f} tokens on average instead of {wanted:.0f}; "
                "the cap holds for the traffic that was sent."
            )


def _mean(total: int, n: int) -> float | None:
    return total / n if n else None

"""Whether live traffic is still like it was when the cap was measured.

**Prompt lengths:** the population stability index over the engine's own buckets,

    PSI = sum over buckets of (p - q) * ln(p / q)        p live, q reference; half an observation added to each bucket

It is symmetric, in nats (Jeffreys' divergence); below 0.1 counts as the same population, above 0.25 as a different one
(S. Lewis, An Introduction to Credit Scoring, 1994). By chance alone it is about (k - 1) (1/n + 1/m) for k buckets in
use: 0.036 with ten buckets and `LEAST_REQUESTS` on each side.

**Prefix hits:** the difference of the hit ratios, where enough tokens were looked up.

The reference is live traffic around the last sweep, not the probes: probes follow the configuration, which another
sweep would not change. How live prompts differ from the probes' is reported separately (`unlike_probes`), because the
remedy is another workload, for example `mirror`.

Pure; called by `core.admission.triggers`.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from calibrator.core.records.server_load import Histogram
from calibrator.core.workload.live_mix import LiveMix

LEAST_REQUESTS = 500.0
LEAST_TOKENS = 50_000.0  # looked up in the prefix cache
SMOOTHING = 0.5


@dataclass(frozen=True, slots=True)
class DriftPolicy:
    """What counts as different traffic."""

    prompt_psi: float = 0.25
    hit_ratio: float = 0.15  # difference of the hit ratios


@dataclass(frozen=True, slots=True)
class Drift:
    """`words` empty: nothing drifted. A distance is None where there was too little traffic for one."""

    prompt_psi: float | None
    hit_ratio_change: float | None
    words: str


def drift(live: LiveMix, reference: LiveMix, policy: DriftPolicy) -> Drift:
    psi, change, found = None, None, []
    if live.prompts is not None and reference.prompts is not None and _is_enough(live, reference):
        psi = stability_index(live.prompts, reference.prompts)
        if psi is not None and psi >= policy.prompt_psi:
            found.append(f"prompts changed (stability index {psi:.2f}): {moved_most(live.prompts, reference.prompts)}")
    if min(live.queried_tokens, reference.queried_tokens) >= LEAST_TOKENS:
        now, then = live.hit_ratio or 0.0, reference.hit_ratio or 0.0
        change = now - then
        if abs(change) >= policy.hit_ratio:
            found.append(f"prefix hits went from {then:.0%} to {now:.0%}")
    return Drift(psi, change, "; ".join(found))


def is_enough(mix: LiveMix) -> bool:
    """Whether a mix can be a reference, or be compared with one."""
    return mix.requests >= LEAST_REQUESTS or (mix.prompts is None and mix.queried_tokens >= LEAST_TOKENS)


def _is_enough(*mixes: LiveMix) -> bool:
    return all(mix.requests >= LEAST_REQUESTS for mix in mixes)


def stability_index(live: Histogram, reference: Histogram) -> float | None:
    """None: the bounds differ. Buckets that are empty in both do not count."""
    if live.bounds != reference.bounds:
        return None
    pairs = [(p, q) for p, q in zip(_parts(live), _parts(reference), strict=True) if p + q > 0.0]
    if not pairs:
        return 0.0
    total_p = sum(p + SMOOTHING for p, _ in pairs)
    total_q = sum(q + SMOOTHING for _, q in pairs)
    shares = [((p + SMOOTHING) / total_p, (q + SMOOTHING) / total_q) for p, q in pairs]
    return math.fsum((p - q) * math.log(p / q) for p, q in shares)


def moved_most(live: Histogram, reference: Histogram) -> str:
    """The bucket whose share changed most, in words. Both histograms have the same bounds."""
    now, then = _shares(live), _shares(reference)
    index = max(range(len(now)), key=lambda i: abs(now[i] - then[i]))
    low = 0.0 if index == 0 else live.bounds[index - 1]
    high = live.bounds[index]
    where = f"above {low:.0f} tokens" if high == math.inf else f"of {low:.0f} to {high:.0f} tokens"
    return f"those {where} went from {then[index]:.0%} to {now[index]:.0%}"


def in_buckets(lengths: Sequence[int], bounds: tuple[float, ...]) -> Histogram:
    """The histogram that an engine would show for these lengths."""
    parts = [0] * len(bounds)
    for length in lengths:
        parts[bisect_left(bounds, length)] += 1
    counts, total = [], 0.0
    for part in parts:
        total += part
        counts.append(total)
    return Histogram(bounds, tuple(counts))


def unlike_probes(live: LiveMix, probe_lengths: Sequence[int], policy: DriftPolicy) -> str:
    """How live prompts differ from the probes', in words; empty: they do not, or it is not known."""
    if live.prompts is None or live.requests < LEAST_REQUESTS or not probe_lengths:
        return ""
    probes = in_buckets(probe_lengths, live.prompts.bounds)
    psi = stability_index(live.prompts, probes)
    if psi is None or psi < policy.prompt_psi:
        return ""
    return (
        f"Live prompts differ from the probes' (stability index {psi:.2f}; {moved_most(live.prompts, probes)}): "
        "the cap holds for traffic like the probes. Change the workload, or mirror live traffic."
    )


def _parts(histogram: Histogram) -> list[float]:
    return [after - before for before, after in pairwise((0.0, *histogram.counts))]


def _shares(histogram: Histogram) -> list[float]:
    return [part / max(1.0, histogram.total) for part in _parts(histogram)]

"""From a sweep to what is published."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PublishPolicy:
    """How a capacity becomes a cap (DESIGN section 4)."""

    fallback_cap: int
    min_cap: int = 1
    max_cap: int = 1_000_000
    safety_margin_ratio: float = 0.1
    max_increase_ratio: float = 1.5
    valid_for_s: float = 64_800.0

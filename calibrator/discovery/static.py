"""Replicas written down by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StaticDiscovery:
    """Port `Discovery`: the configured base URLs, in their order."""

    urls: tuple[str, ...]

    async def replicas(self) -> Sequence[str]:
        return self.urls

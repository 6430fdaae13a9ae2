"""Replicas listed in the configuration."""

from __future__ import annotations

import math
from dataclasses import dataclass

from calibrator.core.publish.fleet import Found, ReplicaAddress


@dataclass(frozen=True, slots=True)
class StaticDiscovery:
    """Port `Discovery`: the configured base URLs, in their order."""

    urls: tuple[str, ...]

    async def find(self) -> Found:
        return Found(tuple(ReplicaAddress(url) for url in self.urls), math.inf)

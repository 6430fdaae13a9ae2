"""Bearer tokens as their files say, without a read for each of thousands of polls a second."""

from __future__ import annotations

import math
from collections.abc import Mapping

from calibrator.ports import Clock
from calibrator.settings import Settings, tokens
from calibrator.settings.plans import Tokens

FRESH_S = 1.0  # so soon does a rotated token work, and its predecessor no longer


class FreshTokens:
    """Reads again what is older than `FRESH_S`. Raises ConfigurationError while a token's file is missing."""

    def __init__(self, settings: Settings, environ: Mapping[str, str], clock: Clock) -> None:
        self._settings = settings
        self._environ = environ
        self._clock = clock
        self._known = Tokens()
        self._until_s = -math.inf

    def operator(self) -> tuple[str, ...]:
        return self._now().operator

    def read(self) -> tuple[str, ...]:
        return self._now().read

    def _now(self) -> Tokens:
        now_s = self._clock.monotonic()
        if now_s >= self._until_s:
            self._known, self._until_s = tokens(self._settings, self._environ), now_s + FRESH_S
        return self._known

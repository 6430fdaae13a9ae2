"""Bearer tokens as their files say, without a read for each of thousands of polls a second.

A file that is rotated may for a moment be missing, empty or half written. So a token whose source cannot be used any
more goes on for `GRACE_S`, which is logged at once; then it is void. What it gave access to stays closed:
something that nobody can know stands in its place, because no token at all would mean that reading is open to all.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence

import structlog

from calibrator.errors import ConfigurationError
from calibrator.ports.clock import Clock
from calibrator.settings import Settings
from calibrator.settings.plans import one_token, token_keys
from calibrator.settings.values import Secret

FRESH_S = 1.0  # so soon does a rotated token work, and its predecessor no longer
GRACE_S = 10.0


class FreshTokens:
    """Reads again what is older than `FRESH_S`. Never raises: a start reads every token before it makes this."""

    def __init__(self, settings: Settings, environ: Mapping[str, str], clock: Clock) -> None:
        fresh = {key: _Fresh(key, reference) for key, reference in token_keys(settings).items()}
        self._operator = [one for key, one in fresh.items() if key.startswith("auth.operator_tokens")]
        self._read = [one for key, one in fresh.items() if key.startswith("auth.read_tokens")]
        self._environ = environ
        self._clock = clock
        self._known: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
        self._until_s = -math.inf

    def operator(self) -> tuple[str, ...]:
        return self._now()[0]

    def read(self) -> tuple[str, ...]:
        return self._now()[1]

    def _now(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        now_s = self._clock.monotonic()
        if now_s >= self._until_s:
            self._known, self._until_s = (self._look(self._operator), self._look(self._read)), now_s + FRESH_S
        return self._known

    def _look(self, tokens: Sequence[_Fresh]) -> tuple[str, ...]:
        now_s = self._clock.monotonic()
        return tuple(token.current(self._environ, now_s) for token in tokens)


class _Fresh:
    """One token."""

    def __init__(self, key: str, reference: Secret) -> None:
        self._key = key
        self._reference = reference
        self._text = secrets.token_hex(32)
        self._lost_at_s: float | None = None

    def current(self, environ: Mapping[str, str], now_s: float) -> str:
        try:
            self._text = one_token(self._key, self._reference, environ)
        except ConfigurationError as error:
            if self._lost_at_s is None:
                self._lost_at_s = now_s
                structlog.get_logger().error("a token is lost", reason=str(error), works_for_s=GRACE_S)
            elif now_s >= self._lost_at_s + GRACE_S:
                self._text = secrets.token_hex(32)
        else:
            self._lost_at_s = None
        return self._text

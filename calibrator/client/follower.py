"""The state of a polling client, without I/O: what to send, what a response means, when to poll again.

| response | effect |
|---|---|
| 200 with an integer `share` >= 1 | it is the limit, until `valid_until` |
| 304 | none: the known share is current |
| 503 | poll again after `Retry-After`; the last share stays in force, or the static cap before the first |
| anything else: no connection, another status, an invalid body | the same, at the usual interval |

After `valid_until` the static cap applies, whether the calibrator responds or not; it should be safe without any
measurement. A cap that does not expire (the service's own fallback) has no `valid_until`.

**Clock skew.** `valid_until` is server time and is only compared with the server's `Date`; the remaining time is then
measured on the monotonic clock of this machine. Its wall clock matters only if the server sends no `Date`.

**Jitter** of a tenth either way, so that a fleet that was started together does not poll together. A long poll
(`wait_s`) returns a change at once; two are at least `PAUSE_S` apart.

**A smaller share** makes room for another client, who waits until this process reports that it has no more in flight.
So it polls again at once, and sends no long polls while more requests are running than the share allows.
"""

from __future__ import annotations

import json
import math
import os
import random
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from urllib.parse import quote

from calibrator.errors import CalibratorError, ConfigurationError

JITTER_RATIO = 0.1
PAUSE_S = 0.2
LONGEST_RETRY_S = 60.0
MAX_WAIT_S = 60.0  # the server's own limit
ANSWER_LIMIT_S = 5.0  # beyond `wait_s`
MAX_SHARE = 1_000_000_000
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._:@/-]")


class LimitReachedError(CalibratorError):
    """The share of this process is in use. Respond with 429, or wait longer."""


def cap_path(backend: str) -> str:
    return f"/v1/backends/{quote(backend, safe='')}/cap"


def credentials(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"} if token else {}


def own_name() -> str:
    return _NOT_IN_NAMES.sub("-", f"{socket.gethostname()}:{os.getpid()}")[:128]


@dataclass(slots=True)
class Follower:
    """The cap of one backend in one process. All `now_s` are readings of the monotonic clock."""

    static_cap: int
    client: str = ""  # "": host and process id, read at each poll, as the process may have forked
    poll_s: float = 5.0
    wait_s: float = 0.0
    draws: random.Random = field(default_factory=random.Random)
    state: str = ""  # of the last response; "" before the first
    problem: str = ""  # why the last poll failed; "" if it did not
    _share: int | None = None
    _is_over: bool = False  # at the last poll: more in flight than the share
    _etag: str = ""
    _valid_until_s: float = math.inf

    def __post_init__(self) -> None:
        if isinstance(self.static_cap, bool) or self.static_cap < 1:
            raise ConfigurationError("The static cap is below 1.", "Use one that is safe without any measurement.")
        if not 0.0 <= self.wait_s <= MAX_WAIT_S or self.poll_s <= 0.0:
            raise ConfigurationError(
                "poll_s or wait_s is out of range.", f"Use poll_s above 0 and wait_s from 0 to {MAX_WAIT_S:g}."
            )

    def limit(self, now_s: float) -> int:
        """How many requests this process may have in flight."""
        return self._share if self._share is not None and now_s < self._valid_until_s else self.static_cap

    def query(self, in_flight: int, rejected: int) -> dict[str, str]:
        self._is_over = self._share is not None and in_flight > self._share
        asked = {"client": self.client or own_name(), "in_flight": str(in_flight), "rejected": str(rejected)}
        return {**asked, "wait": f"{self.wait_s:g}"} if self.wait_s and not self._is_over else asked

    def headers(self) -> dict[str, str]:
        return {"If-None-Match": self._etag} if self._etag else {}

    def answered(self, status: int, headers: Mapping[str, str], body: bytes, now_s: float, wall: float) -> float:
        """Process a response; returns the seconds until the next poll. `headers` by lower-case name."""
        before = self._share
        if status == HTTPStatus.NOT_MODIFIED:
            self.problem = ""
        elif status == HTTPStatus.OK:
            self._read(headers, body, now_s, wall)
        else:
            self.problem = f"the calibrator responded with {status}"
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            return self._spread(_retry_after_s(headers, self.poll_s))
        if before is not None and self._share is not None and self._share < before:
            return self._soon_s()
        return self._next_s()

    def failed(self, problem: str) -> float:
        """The poll got no response; returns the seconds until the next one."""
        self.problem = problem
        return self._spread(self.poll_s)

    def _next_s(self) -> float:
        return self._soon_s() if self.wait_s and not self.problem and not self._is_over else self._spread(self.poll_s)

    def _soon_s(self) -> float:
        return PAUSE_S * (1.0 + self.draws.random())

    def _spread(self, seconds: float) -> float:
        return seconds * self.draws.uniform(1.0 - JITTER_RATIO, 1.0 + JITTER_RATIO)

    def _read(self, headers: Mapping[str, str], body: bytes, now_s: float, wall: float) -> None:
        try:
            document = json.loads(body)
            share, state, ends = document["share"], document["state"], document["valid_until"]
            left_s = math.inf if ends is None else _timestamp(ends) - _server_time(headers, wall)
        except (ValueError, KeyError, TypeError) as error:
            self.problem = f"invalid response ({type(error).__name__})"
            return
        if type(share) is not int or not 1 <= share <= MAX_SHARE:  # True is an int to Python
            self.problem = "invalid response (no share of 1 or more)"
            return
        self._share, self._etag, self._valid_until_s = share, headers.get("etag", ""), now_s + left_s
        self.state, self.problem = str(state), ""


def _timestamp(text: str) -> float:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("a time without a time zone")
    return moment.timestamp()


def _server_time(headers: Mapping[str, str], wall: float) -> float:
    try:
        return parsedate_to_datetime(headers["date"]).timestamp()
    except (KeyError, ValueError):
        return wall


def _retry_after_s(headers: Mapping[str, str], usual_s: float) -> float:
    try:
        return min(LONGEST_RETRY_S, max(PAUSE_S, float(headers["retry-after"])))
    except (KeyError, ValueError):
        return usual_s

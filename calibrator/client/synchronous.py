"""The cap for threaded programs: a thread polls, `acquire` counts under a lock. Any thread may call."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ssl import SSLContext
from types import TracebackType
from typing import Self

import httpx

from calibrator.client.follower import ANSWER_LIMIT_S, Follower, LimitReachedError, cap_path, credentials


class SyncCap:
    """Follows the cap of one backend from `start` (or `with`) to `close`; `acquire` enforces it.

    Arguments as for `AsyncCap`. There are no long polls, as they would delay `close`.
    """

    def __init__(
        self,
        url: str,
        backend: str,
        *,
        static_cap: int,
        client: str = "",
        token: str = "",
        poll_s: float = 5.0,
        verify: bool | SSLContext = True,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._follower = Follower(static_cap, client, poll_s)
        self._path = cap_path(backend)
        self._url, self._token, self._verify, self._transport = url, token, verify, transport
        self._in_flight = 0
        self._rejected = 0
        self._free = threading.Condition()  # guards the counters and the follower
        self._stop = threading.Event()
        self._polling: threading.Thread | None = None
        self._log = logging.getLogger("calibrator.client")

    @property
    def limit(self) -> int:
        """How many requests this process may have in flight now."""
        with self._free:
            return self._follower.limit(time.monotonic())

    @property
    def in_flight(self) -> int:
        with self._free:
            return self._in_flight

    @property
    def state(self) -> str:
        """State of the cap by the last response; "" before the first."""
        with self._free:
            return self._follower.state

    @property
    def problem(self) -> str:
        """Why the last poll failed; "" if it did not."""
        with self._free:
            return self._follower.problem

    @contextmanager
    def acquire(self, timeout_s: float = 0.0) -> Iterator[None]:
        """Hold a slot during the block. Raises LimitReachedError if none is free within `timeout_s`."""
        with self._free:
            if not self._free.wait_for(self._has_slot, timeout_s):
                self._rejected += 1
                raise LimitReachedError("All requests of this process's share are in flight.", "Try again later.")
            self._in_flight += 1
        try:
            yield
        finally:
            with self._free:
                self._in_flight -= 1
                self._free.notify()

    def _has_slot(self) -> bool:
        return self._in_flight < self._follower.limit(time.monotonic())

    # ------------------------------------------------------------------------------------------------ life cycle
    def start(self) -> None:
        """Start polling in a daemon thread; idempotent."""
        if self._polling is None:
            self._stop.clear()
            self._polling = threading.Thread(target=self._poll_on, name="calibrator-cap", daemon=True)
            self._polling.start()

    def close(self) -> None:
        """Stop polling. Waits for a poll under way, at most for the response timeout."""
        polling, self._polling = self._polling, None
        if polling is not None:
            self._stop.set()
            polling.join()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --------------------------------------------------------------------------------------------------- polling
    def _poll_on(self) -> None:
        with httpx.Client(
            base_url=self._url,
            headers=credentials(self._token),
            timeout=ANSWER_LIMIT_S,
            verify=self._verify,
            transport=self._transport,
        ) as http:
            pause_s = 0.0
            while not self._stop.wait(pause_s):
                before = self.problem
                pause_s = self._poll(http)
                if self.problem != before:
                    self._log.warning("cap: %s", self.problem or "the calibrator responds again")

    def _poll(self, http: httpx.Client) -> float:
        with self._free:
            rejected = self._rejected
            query, headers = self._follower.query(self._in_flight, rejected), self._follower.headers()
        try:
            answer = http.get(self._path, params=query, headers=headers)
        except (httpx.HTTPError, OSError) as error:  # OSError: a late refusal of TLS
            with self._free:
                return self._follower.failed(f"the calibrator does not respond ({type(error).__name__})")
        with self._free:
            self._rejected -= rejected
            self._free.notify_all()  # the share may have grown
            return self._follower.answered(
                answer.status_code, answer.headers, answer.content, time.monotonic(), time.time()
            )

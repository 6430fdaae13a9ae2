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
    """Follows one backend's cap from `start` (or `with`) to `close`, and holds it with `acquire`.

    Arguments as for `AsyncCap`. A long poll holds `close` up by as much as it waits, so none is offered here.
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
        self._free = threading.Condition()  # guards everything that follows from here and the follower
        self._stop = threading.Event()
        self._polling: threading.Thread | None = None
        self._log = logging.getLogger("calibrator.client")

    @property
    def limit(self) -> int:
        """What this process may have in flight at this moment."""
        with self._free:
            return self._follower.limit(time.monotonic())

    @property
    def in_flight(self) -> int:
        with self._free:
            return self._in_flight

    @property
    def state(self) -> str:
        """Of the cap as last answered; "" before the first answer."""
        with self._free:
            return self._follower.state

    @property
    def problem(self) -> str:
        """Why the last poll said nothing; "" if it did."""
        with self._free:
            return self._follower.problem

    @contextmanager
    def acquire(self, timeout_s: float = 0.0) -> Iterator[None]:
        """Hold a place during the block. Raises LimitReachedError if none is free within `timeout_s`."""
        with self._free:
            if not self._free.wait_for(self._has_place, timeout_s):
                self._rejected += 1
                raise LimitReachedError("All requests of this process's share are in flight.", "Try again later.")
            self._in_flight += 1
        try:
            yield
        finally:
            with self._free:
                self._in_flight -= 1
                self._free.notify()

    def _has_place(self) -> bool:
        return self._in_flight < self._follower.limit(time.monotonic())

    # ------------------------------------------------------------------------------------------------ life cycle
    def start(self) -> None:
        """Begin to poll in a thread of its own, which does not keep the program alive; may be called again."""
        if self._polling is None:
            self._stop.clear()
            self._polling = threading.Thread(target=self._poll_on, name="calibrator-cap", daemon=True)
            self._polling.start()

    def close(self) -> None:
        """Stop polling; a poll under way ends by itself, within the time that an answer may take."""
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
                    self._log.warning("cap: %s", self.problem or "the calibrator answers again")

    def _poll(self, http: httpx.Client) -> float:
        with self._free:
            rejected = self._rejected
            query, headers = self._follower.query(self._in_flight, rejected), self._follower.headers()
        try:
            answer = http.get(self._path, params=query, headers=headers)
        except (httpx.HTTPError, OSError) as error:  # OSError: a late refusal of TLS
            with self._free:
                return self._follower.failed(f"the calibrator does not answer ({type(error).__name__})")
        with self._free:
            self._rejected -= rejected
            self._free.notify_all()  # the share may have grown
            return self._follower.answered(
                answer.status_code, answer.headers, answer.content, time.monotonic(), time.time()
            )

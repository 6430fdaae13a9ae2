"""Follow and enforce a cap from within your own gateway.

    async with AsyncCap("http://calibrator:8300", "chat", static_cap=8) as cap:
        async with cap.acquire():          # LimitReachedError at once if the share is in use: respond with 429
            ...                            # acquire(timeout_s=2.0) waits in a queue instead
    with SyncCap("http://calibrator:8300", "chat", static_cap=8) as cap, cap.acquire():
        ...

Create one object per process and backend. It polls in the background under its own name, and reports its requests in
flight and rejected requests, by which the cap is divided. This package needs httpx and nothing else of calibrator's
dependencies: install it with `pip install --no-deps calibrator` beside httpx.
"""

from calibrator.client.asynchronous import AsyncCap
from calibrator.client.follower import LimitReachedError
from calibrator.client.synchronous import SyncCap

__all__ = ["AsyncCap", "LimitReachedError", "SyncCap"]

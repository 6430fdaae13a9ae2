"""Follow a cap from inside your own gateway, and hold it.

    async with AsyncCap("http://calibrator:8300", "chat", static_cap=8) as cap:
        async with cap.acquire():          # LimitReachedError at once when the share is in use: answer 429
            ...                            # acquire(timeout_s=2.0) waits in line instead
    with SyncCap("http://calibrator:8300", "chat", static_cap=8) as cap, cap.acquire():
        ...

One object per process and backend: it polls in the background, as a sharer of its own name, and tells what it has in
flight and what it refused, by which the cap is divided. This package needs httpx and nothing else of calibrator's
dependencies: install it with `pip install --no-deps calibrator` beside httpx.
"""

from calibrator.client.asynchronous import AsyncCap
from calibrator.client.follower import LimitReachedError
from calibrator.client.synchronous import SyncCap

__all__ = ["AsyncCap", "LimitReachedError", "SyncCap"]

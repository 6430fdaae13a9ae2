"""The cap in front of vLLM or any program that takes a middleware by name: `--middleware calibrator_cap.Cap`.

Edit the backend and its static cap; the address and the tokens come from the environment.
"""

import os

from calibrator.client import AsyncCap
from calibrator.gateways.asgi import App, CapMiddleware


class Cap(CapMiddleware):
    def __init__(self, app: App) -> None:
        cap = AsyncCap(
            os.environ["CALIBRATOR_URL"],
            "llm",  # backend as named in calibrator
            static_cap=4,  # what each process may have in flight until it has a share. Safe and low
            token=os.environ.get("CALIBRATOR_TOKEN", ""),
            poll_s=2.0,
        )
        # The API key of calibrator's probes, if this runs in the engine itself.
        super().__init__(app, cap, exempt_token=os.environ.get("PROBE_API_KEY", ""))

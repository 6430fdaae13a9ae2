"""How long to fuzz: fixed seeds and a short run in CI; `FUZZ_EXAMPLES=2000 pytest tests/fuzz --timeout 0` for
a night's run."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, settings

EXAMPLES = os.environ.get("FUZZ_EXAMPLES")

settings.register_profile(
    "fuzz",
    max_examples=int(EXAMPLES or "40"),
    derandomize=EXAMPLES is None,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
)

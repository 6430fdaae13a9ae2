"""What `callbacks: calibrator_cap.cap_guard` in config.yaml names. LiteLLM looks for it next to its configuration.

Edit the two tables; the address and the token come from the environment.
"""

import os

from calibrator.gateways.litellm import CapGuard

cap_guard = CapGuard(
    os.environ["CALIBRATOR_URL"],
    # backend as named in calibrator: what each worker may have in flight until it has a share. Safe and low.
    static_caps={"llm": 4},
    # model name that clients send (a `model_name` of config.yaml, or an alias of it): backend
    groups={"llm": "llm"},
    token=os.environ.get("CALIBRATOR_TOKEN", ""),
    poll_s=2.0,
    max_wait_s=0.0,  # above 0: how long requests queue before they get a 429
    lease_s=900.0,  # longer than the longest request
)

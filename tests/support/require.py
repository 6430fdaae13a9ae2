"""Real components in tests: missing on a laptop is a skip, missing in CI is a failure, never silence.

`make test` exports TESTS_REQUIRE_ENGINE=1.
"""

from __future__ import annotations

import os

import pytest


def require(part: str, *, found: bool, remedy: str) -> None:
    """Skip the test that needs `part`, or fail it where every part must be there."""
    if found:
        return
    reason = f"{part} is not installed: {remedy}"
    if os.environ.get("TESTS_REQUIRE_ENGINE") == "1":
        pytest.fail(reason)
    pytest.skip(reason)

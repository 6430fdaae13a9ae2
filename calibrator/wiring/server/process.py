"""What the operating system grants this process and the sweeps that it starts."""

from __future__ import annotations

import contextlib
import resource

from calibrator.wiring.server.connection_guard import LIMITS

SPARE_FILES = 512  # for probes, the store and the rest


def set_limits() -> None:
    """No core dump, which would hold every secret; and as many open files as connections are let in, where allowed."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = LIMITS.connections + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):  # some systems count lower than they say
            reachable = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
            resource.setrlimit(resource.RLIMIT_NOFILE, (reachable, hard))

"""The figures of the documentation that answer misconceptions: counted on the simulated engine in virtual time.

They do not depend on the machine, take seconds, and are counted anew by each test run (`generate_docs` has them among
its parts), so that no page can quote a figure that the code no longer gives. Over real HTTP `calibrator sweep
--levels` shows the same within its intervals.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from functools import cache

from calibrator.backends.simulated.parameters import PARAMETER_SETS, SEED_WORKLOAD
from calibrator.backends.simulated.virtual_loop import VirtualRequest, run_level
from calibrator.core.workload.classes import Workload, WorkloadClass

REQUESTS = 10_000  # standard error of 1 %: 0.1 %
LIMIT_S = 0.3  # the demo's SLA
CURVE_LEVELS = (1, 8, 16, 32, 48, 64)
SHARES_PERCENT = (0, 1, 5, 20)
SHORT_TOKENS, LONG_TOKENS = 200, 6000
POINT_REQUESTS = 100
POINT_TESTS = 100
POINT_LEVELS = (32, 36, 40, 48)


def quantile(values: Iterable[float], share: float) -> float:
    """The smallest value that at least this share does not exceed."""
    ordered = sorted(values)
    return ordered[math.ceil(share * len(ordered)) - 1]


@cache
def seed_level(users: int) -> tuple[tuple[float, ...], float]:
    """Times to first token in the order of the starts, and the seconds they took; default engine, default workload."""
    requests: list[VirtualRequest] = []
    duration_s = run_level(PARAMETER_SETS["seed"], SEED_WORKLOAD, users, REQUESTS, requests.append)
    return tuple(one.ttft_s for one in sorted(requests, key=lambda one: one.number)), duration_s


def curve() -> str:
    """Latency, throughput and goodput against concurrency."""
    rows = []
    for users in CURVE_LEVELS:
        ttft_s, duration_s = seed_level(users)
        good = sum(value <= LIMIT_S for value in ttft_s)
        rows.append(
            (users, _ms(quantile(ttft_s, 0.5)), _ms(quantile(ttft_s, 0.99)), f"{1 - good / REQUESTS:.1%}",
             f"{REQUESTS / duration_s:.0f}", f"{good / duration_s:.0f}")
        )  # fmt: skip
    head = ("in flight", "TTFT P50", "TTFT P99", f"over {_ms(LIMIT_S)}", "requests/s", "of them within the SLA")
    return table(head, rows)


def long_prompts() -> str:
    """What a share of long prompts does to everybody's tail, and to that of the short ones."""
    rows = []
    for percent in SHARES_PERCENT:
        one, eight = mixed_level(percent, 1), mixed_level(percent, 8)
        cells = [_ms(quantile(_ttft(level, keep), 0.99)) for keep in (_any, _short) for level in (one, eight)]
        rows.append((f"{percent} %", *cells))
    head = ("long prompts", "all, 1 in flight", "all, 8", "short ones, 1 in flight", "short ones, 8")
    return table(head, rows)


@cache
def mixed_level(percent: int, users: int) -> tuple[VirtualRequest, ...]:
    """Short prompts and some long ones on an engine with slots to spare."""
    sizes = ((100 - percent, SHORT_TOKENS), (percent, LONG_TOKENS))
    classes = tuple(
        WorkloadClass(name=f"{tokens}", share=share, prompt_tokens=tokens, output_tokens=16, spread_ratio=0.3)
        for share, tokens in sizes
        if share
    )
    requests: list[VirtualRequest] = []
    run_level(PARAMETER_SETS["long_prompts"], Workload(classes), users, REQUESTS // 2, requests.append)
    return tuple(requests)


def _any(_: VirtualRequest) -> bool:
    return True


def _short(request: VirtualRequest) -> bool:
    return request.prompt_tokens < (SHORT_TOKENS + LONG_TOKENS) / 2


def _ttft(requests: Sequence[VirtualRequest], keep: Callable[[VirtualRequest], bool]) -> list[float]:
    return [one.ttft_s for one in requests if keep(one)]


def single_points() -> str:
    """What a hundred separate tests of a hundred requests say about one level."""
    rows = []
    for users in POINT_LEVELS:
        ttft_s, _ = seed_level(users)
        tails = [quantile(part, 0.99) for part in parts(ttft_s)]
        over = sum(value > LIMIT_S for value in ttft_s) / REQUESTS
        passed = sum(tail <= LIMIT_S for tail in tails)
        scatter = f"{_ms(min(tails))} to {_ms(max(tails))}, half of them below {_ms(statistics.median(tails))}"
        rows.append((users, f"{over:.1%}", f"{passed} of {len(tails)}", scatter))
    head = ("in flight", f"truly over {_ms(LIMIT_S)}", f"tests that saw P99 <= {_ms(LIMIT_S)}", "P99 that they saw")
    return table(head, rows)


def parts(values: Sequence[float]) -> list[Sequence[float]]:
    """`POINT_TESTS` runs of `POINT_REQUESTS` that follow each other."""
    starts = range(0, POINT_TESTS * POINT_REQUESTS, POINT_REQUESTS)
    return [values[start : start + POINT_REQUESTS] for start in starts]


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---:"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) + "\n"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms"

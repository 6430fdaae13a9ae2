"""A sweep of llama.cpp as a user types it, and a pilot that finds a limit between two levels without the product."""

from __future__ import annotations

import asyncio
import json
import math
import statistics
import subprocess
import sys

from support.independent_load import hold_level, quantile
from support.llamacpp import MODEL_NAME, LlamaServer

QUANTILE = 0.95  # of a pilot's 150 requests, a P99 is the slowest but one: the machine's, not the engine's


def sweep(engine: LlamaServer, *options: str) -> dict[str, object]:
    """`calibrator sweep --output json`, as a user types it; stdout must be one JSON document."""
    command = [sys.executable, "-m", "calibrator", "sweep", "--url", engine.api_url, "--model", MODEL_NAME]
    done = subprocess.run(
        [*command, "--output", "json", *options], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode in (0, 4), done.stderr
    document: dict[str, object] = json.loads(done.stdout)
    return document


def objective(limit_s: float) -> str:
    return f"ttft p{QUANTILE * 100:g} <= {limit_s * 1e3:.2f}ms"


def tail_s(
    engine: LlamaServer, users: int, requests: int, *, prompt_tokens: int, output_tokens: int, seed: int
) -> float:
    answers = asyncio.run(
        hold_level(
            engine.port,
            users=users,
            requests=requests,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            seed=seed,
        )
    )
    return quantile([answer.ttft_s for answer in answers], QUANTILE)


def limit_between(engine: LlamaServer, lower: int, upper: int, **shape: int) -> float:
    """Geometric mean of the two levels' tails, each the median of three interleaved pilots."""
    pilots = [
        (tail_s(engine, lower, 150, seed=seed, **shape), tail_s(engine, upper, 150, seed=seed + 100, **shape))
        for seed in range(3)
    ]
    below, above = (statistics.median(column) for column in zip(*pilots, strict=True))
    assert above > 1.2 * below, f"the pilot does not tell {lower} from {upper}: {below:.4f} s, {above:.4f} s"
    return math.sqrt(below * above)

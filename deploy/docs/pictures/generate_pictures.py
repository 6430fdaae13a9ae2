"""Draws and photographs the pictures of the documentation beside itself (`make pictures`).

The curve is drawn by the report's own renderer from sweeps on virtual time, so it is the same on every machine. The
page is a photograph of the running demo.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from playwright.sync_api import ViewportSize
from support.browser import chromium
from support.demo_process import running_demo
from support.organic import steady
from support.organic_sweep import Engine, sweep_beside
from support.service_process import wait_for

from calibrator.backends.simulated.parameters import PARAMETER_SETS, SEED_WORKLOAD
from calibrator.core.records.history import Bounds
from calibrator.web.report.chart import standalone
from calibrator.web.report.report import STYLE, charts
from calibrator.web.wire.documents import sweep_document

PICTURES = Path(__file__).parent
ENGINE = Engine("seed", PARAMETER_SETS["seed"], SEED_WORKLOAD, "ttft p99 <= 300ms", max_level=128)
NOBODY = steady(0)
LEVELS = (1, 2, 4, 8, 12, 16, 24, 32, 40, 48, 64)
REQUESTS_PER_LEVEL = 1500
SEED = 2
BUDGET = Bounds(max_level=128, requests=4000)
SIZE = ViewportSize(width=1100, height=900)


def curve() -> str:
    """The levels of one sweep, and the capacity that a search finds."""
    measured = sweep_beside(ENGINE, NOBODY, SEED, levels=LEVELS, requests_per_level=REQUESTS_PER_LEVEL).record
    found = sweep_beside(ENGINE, NOBODY, SEED, bounds=BUDGET).record
    document = sweep_document(replace(measured, capacity=found.capacity), cap=None)
    latency, *_ = charts(document)
    return standalone(latency, STYLE)


def photograph() -> bytes:
    """The page of the demo's backend, when its sweep has ended."""
    with running_demo() as demo, chromium() as browser:
        wait_for(lambda: demo.document()["last_sweep"] is not None, "the demo's sweep ends", 150.0)
        page = browser.new_page(viewport=SIZE, color_scheme="light")
        page.goto(f"{demo.url}/backends/demo")
        page.locator("#live.on").wait_for()
        return page.screenshot(animations="disabled")


if __name__ == "__main__":
    (PICTURES / "curve.svg").write_text(curve())
    if "--curve" not in sys.argv:
        (PICTURES / "page.png").write_bytes(photograph())

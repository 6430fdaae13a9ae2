"""`calibrator demo` as a newcomer sees it: open the page, watch the sweep to its end, pin the cap, see it expire."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, expect
from support.browser import watched
from support.demo_process import Demo, running_demo
from support.service_process import wait_for

SWEEP_LIMIT_MS = 300_000.0


@pytest.fixture(scope="module")
def demo() -> Iterator[Demo]:
    with running_demo("--parameters", "small", "--objective", "ttft p99 <= 100ms") as running:
        yield running


def test_a_sweep_is_watched_to_its_end_and_its_curve_is_the_apis(browser: Browser, demo: Demo) -> None:
    with watched(browser, demo.url) as at:
        at.open("/")
        at.page.get_by_role("link", name="demo").click()
        at.wait_until_live()
        at.page.evaluate("window.isTheSamePage = true")
        expect(at.page.locator("#now .running")).to_contain_text("in flight")
        expect(at.page.locator("#curve canvas")).to_be_visible(timeout=SWEEP_LIMIT_MS)  # the first levels, under way
        expect(at.page.locator("#now .pill")).to_have_text("calibrated", timeout=SWEEP_LIMIT_MS)
        backend = demo.document()
        expect(at.page.locator("#now .big")).to_have_text(str(backend["cap"]))
        sweep = demo.document(f"/sweeps/{backend['last_sweep']['sweep_id']}")
        levels: list[dict[str, Any]] = sweep["levels"]
        expect(at.page.locator("#curve tbody tr")).to_have_count(len(levels))

        def drawn() -> list[list[float | None]] | None:
            data: list[list[float | None]] = at.page.evaluate("document.querySelector('#curve figure').plot?.data")
            return data if data and len(data[0]) == len(levels) else None

        data = wait_for(drawn, "the whole curve is drawn")
        by_level = sorted(levels, key=lambda one: float(str(one["concurrency"])))
        assert data[0] == [one["concurrency"] for one in by_level]
        for row, name in ((1, "p50"), (4, "p90"), (7, "p99")):
            assert data[row] == [one["ttft_s"][name] for one in by_level]
        expect(at.page.locator("#history")).to_contain_text(f"report of sweep {sweep['sweep_id']}")
        assert at.page.evaluate("window.isTheSamePage")
        assert at.layout_faults() == []
        assert at.severe_findings() == []


def test_a_pin_is_set_on_the_page_and_expires_by_itself(browser: Browser, demo: Demo) -> None:
    """Under a name that no browser trusts, as in most networks: there it tells less of where a form is from."""
    wait_for(lambda: demo.document()["state"] == "calibrated", "the sweep has ended", SWEEP_LIMIT_MS / 1000)
    with watched(browser, f"http://calibrator.test:{demo.port}") as at:
        at.open("/backends/demo")
        at.page.get_by_role("link", name="Sign in with an operator token").click()
        at.page.get_by_label("Token").fill(demo.token)
        at.page.get_by_role("button", name="Sign in").click()
        at.page.get_by_text("Pin the cap …").click()
        form = at.page.locator("form[action$=override]")
        for label, text in (("Requests in flight", "2"), ("For minutes", "0.06"), ("Who", "Ann"), ("Reason", "a test")):
            form.get_by_label(label).fill(text)
        at.page.get_by_role("button", name="Pin it").click()
        expect(at.page.get_by_role("status")).to_contain_text("The cap is pinned.")
        expect(at.page.locator("#now .big")).to_have_text("2")
        expect(at.page.locator("#now")).to_contain_text("to 2 by Ann: a test")
        expect(at.page.locator("#now .pill")).to_have_text("calibrated")  # after 3.6 s, without a reload
        assert demo.document()["override"] is None
        expect(at.page.locator("#now .big")).to_have_text(str(demo.document()["cap"]))

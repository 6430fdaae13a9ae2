"""The report in a real Chromium: readable wide and narrow, light, dark and on paper, under its own strict policy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from playwright.sync_api import Browser, expect
from support.browser import watched
from support.page_site import PageSite, page_site
from support.web_fakes import FakeOperator, calibrated, level, record, snapshot

from calibrator.core.records.history import Capacity
from calibrator.core.records.sweep import LevelReport, VerdictKind
from calibrator.core.stats.quantile import LatencySummary, QuantileEstimate

REPORT = "/v1/backends/chat/sweeps/sweep-6/report?compare=sweep-5"


def measured(concurrency: int, slower: float = 1.0) -> LevelReport:
    def estimate(value_s: float) -> QuantileEstimate:
        return QuantileEstimate(value_s, value_s * 0.9, value_s * 1.1)

    tail_s = (0.05 + concurrency**2 / 4000) * slower
    kind = VerdictKind.EXCEEDED if concurrency > 41 else VerdictKind.WITHIN
    summary = LatencySummary(500, *(estimate(tail_s * share) for share in (0.4, 0.7, 1.0)))
    return replace(level(concurrency, kind), ttft=summary)


@pytest.fixture(scope="module")
def site() -> Iterator[PageSite]:
    levels = (1, 8, 24, 41, 52)
    ours = record(levels=tuple(measured(one) for one in levels))
    theirs = record("sweep-5", capacity=Capacity(60, 56, 66), levels=tuple(measured(one, 1.5) for one in levels))
    with page_site(FakeOperator(snapshot(calibrated()), (ours, theirs))) as running:
        yield running


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (360, True)])
def test_it_is_accessible_and_unbroken(browser: Browser, site: PageSite, width: int, dark: bool) -> None:  # noqa: FBT001 - a parameter
    with watched(browser, site.url, width=width, dark=dark) as at:
        at.open(REPORT)
        expect(at.page.locator("svg")).to_have_count(at.page.locator("figure").count())
        assert at.layout_faults() == []
        assert at.severe_findings() == []
        assert at.page.evaluate("getComputedStyle(document.querySelector('.answer')).borderLeftStyle") == "solid"


def test_it_says_what_has_changed_and_leads_there(browser: Browser, site: PageSite) -> None:
    with watched(browser, site.url, scripts=False) as at:
        at.open(REPORT)
        link = at.page.get_by_role("link", name="Compared with sweep-5")
        expect(link.locator("..")).to_contain_text("41 (38 to 44)")
        link.click()
        expect(at.page.locator("#compared")).to_be_in_viewport()
        expect(at.page.locator("#compared ~ ul")).to_contain_text("lower at 1, 8, 24, 41 and 52 in flight")


def test_on_paper_nothing_is_cut_off_and_the_ground_is_white(browser: Browser, site: PageSite) -> None:
    with watched(browser, site.url, width=720, dark=True) as at:
        at.open(REPORT)
        at.page.emulate_media(media="print")
        assert at.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        tables = at.page.locator(".wide")
        overflows = tables.evaluate_all("all => all.filter(one => one.scrollWidth > innerWidth + 1).length")
        assert overflows == 0

"""The pages in a real Chromium, in every state: readable, reachable, unbroken, alive, with and without scripts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import pytest
from playwright.sync_api import Browser, expect
from support.browser import Watched, watched
from support.page_site import PageSite, page_site
from support.web_fakes import EPOCH_S, OBJECTIVE, FakeOperator, calibrated, fallback, level, record, running, snapshot

from calibrator.core.live.change_test import GuardReason
from calibrator.core.publish.snapshot import (
    BackendView,
    CapBeforeCut,
    CapPoint,
    GuardView,
    Health,
    Override,
    ReplicaStatus,
    ReplicaView,
    State,
)
from calibrator.core.records.sweep import SweepRecord, VerdictKind
from calibrator.core.stats.quantile import LatencySummary, QuantileEstimate
from calibrator.errors import StoreError
from calibrator.ports.sharing import Poller

CUT_OFF = r"ERR_CONNECTION_REFUSED|ERR_INCOMPLETE_CHUNKED_ENCODING|ERR_EMPTY_RESPONSE"
HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>"
LONG = "a-very-long-name-without-a-place-to-break-it-because-somebody-put-the-whole-deployment-into-it"


def curve() -> SweepRecord:
    """Levels whose latency grows as it does in life."""

    def summary(concurrency: int) -> LatencySummary:
        p50, p99 = 0.05 + concurrency**2 / 9000, 0.12 + concurrency**2 / 4000
        estimates = (QuantileEstimate(value, value * 0.9, value * 1.15) for value in (p50, (p50 + p99) / 2, p99))
        return LatencySummary(1000, *estimates)

    def at(concurrency: int) -> object:
        kind = VerdictKind.EXCEEDED if concurrency > 41 else VerdictKind.WITHIN
        rate = min(concurrency * 4.0, 90.0)
        return replace(
            level(concurrency, kind), ttft=summary(concurrency), requests_per_second=rate,
            goodput_per_second=rate if kind is VerdictKind.WITHIN else rate / 3,
        )  # fmt: skip

    levels = tuple(at(concurrency) for concurrency in (1, 4, 12, 24, 36, 41, 52))
    return record(levels=levels)


def everything() -> BackendView:
    """A backend about which there is something to say in every place."""
    base = calibrated().recommendation
    before_cut = CapBeforeCut(46, 46, State.CALIBRATED, EPOCH_S - 300.0)
    pinned = replace(base, cap=5, state=State.OVERRIDDEN)
    return calibrated(
        "busy",
        model=LONG,
        recommendation=pinned,
        underlying=replace(base, state=State.GUARDED, before_cut=before_cut),
        override=Override(5, "incident 7", "Ann", EPOCH_S - 60.0, EPOCH_S + 3600.0),
        health=Health.ERROR,
        health_reason=HOSTILE,
        guard=GuardView(True, {OBJECTIVE: 0.5}, {reason.value: 1 for reason in GuardReason}, "latency", EPOCH_S - 90.0),
        progress=replace(running(), sweep_id="sweep-7"),
        gateway_clients_over_cap=2,
        metrics_problem="the page asks for a password; give metrics_url one",
        traffic_note="prompts are three times as long",
        replicas=tuple(
            ReplicaView(f"http://{LONG}-{n}/v1", ReplicaStatus.READY, 4.0, "vllm", "m", "0.9") for n in (1, 2)
        ),
        trend=tuple(CapPoint(EPOCH_S - 9e4 + 3e4 * n, cap, State.CALIBRATED) for n, cap in enumerate((20, 37, 31))),
    )


def operator() -> FakeOperator:
    views = [everything(), calibrated("calm"), fallback("fresh"), calibrated(LONG)]
    base = calibrated().recommendation
    past = [
        replace(base, backend="busy", version=12 - n, cap=cap, published_at=EPOCH_S - 9e3 * n)
        for n, cap in enumerate((37, 30, 24, 33))
    ]
    return FakeOperator(
        snapshot(*views),
        records=(replace(curve(), sweep_id="sweep-7", backend="busy"), replace(curve(), backend="calm")),
        published=tuple(past),
        polling=(Poller("envoy-1", False, 3, 2, 1.25, 5.0), Poller("haproxy-edge-1", True, 0, 2, 0.5, 0.0)),
    )


@pytest.fixture(scope="module")
def site() -> Iterator[PageSite]:
    with page_site(operator()) as running_site:
        yield running_site


def sign_in(at: Watched, site: PageSite, then: str) -> None:
    at.open(f"/sign-in?then={then}")
    at.page.get_by_label("Token").fill(site.token)
    at.page.get_by_role("button", name="Sign in").click()
    at.page.wait_for_url(f"**{then}")


# ------------------------------------------------------------------------------------------- for everybody, everywhere
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_page_is_accessible_and_unbroken_wide_and_narrow(browser: Browser, site: PageSite, *, dark: bool) -> None:
    """360 px without horizontal scrolling; names, roles, contrast, landmarks by axe-core."""
    with watched(browser, site.url, dark=dark) as at:
        sign_in(at, site, "/backends/busy")
        at.page.locator("summary").last.click()
        for path in ("", "/", "/backends/calm", "/backends/fresh", "/sign-in", "/backends/nope"):
            if path:
                at.open(path)
            if path in {"", "/backends/calm"}:
                at.page.locator("canvas").first.wait_for()
            for width in (1200, 360):
                at.page.set_viewport_size({"width": width, "height": 800})
                at.page.wait_for_timeout(150)  # a chart follows its box with the next frame
                assert at.layout_faults() == [], (path, width)
            assert at.severe_findings() == [], path
        at.faults[:] = [fault for fault in at.faults if "404" not in fault]


def test_without_scripts_the_pages_are_complete(browser: Browser, site: PageSite) -> None:
    with watched(browser, site.url, scripts=False, width=360) as at:
        at.open("/")
        expect(at.page.get_by_role("article")).to_have_count(4)
        at.page.get_by_role("link", name="Need a look").click()
        expect(at.page.get_by_role("article")).to_have_count(1)
        at.page.get_by_role("link", name="busy", exact=True).click()
        expect(at.page.get_by_role("img", name=re.compile("TTFT against requests in flight"))).to_be_visible()
        levels = at.page.get_by_role("region", name="Table of levels")
        expect(levels.get_by_role("row")).to_have_count(1 + 7 + 1)  # the head, the levels, the burst
        expect(levels.get_by_role("row", name=re.compile("^52 .*exceeded"))).to_be_visible()
        expect(at.page.locator("#live")).to_have_text(re.compile(r"as of \d\d:\d\d:\d\d UTC"))
        sign_in(at, site, "/backends/calm")
        at.page.get_by_text("Start a sweep …").click()
        at.page.get_by_role("button", name="Start it").click()
        expect(at.page.get_by_role("status")).to_contain_text("The sweep is queued")
        assert site.operator.asked[-1][0] == "calm"


def test_the_keyboard_reaches_the_content_first_and_every_control(browser: Browser, site: PageSite) -> None:
    with watched(browser, site.url) as at:
        at.open("/")
        at.page.keyboard.press("Tab")
        expect(at.page.get_by_role("link", name="Skip to the content")).to_be_focused()
        at.page.keyboard.press("Enter")
        reached = set()
        while True:
            at.page.keyboard.press("Tab")
            here = at.page.evaluate("document.activeElement.textContent.trim() || document.activeElement.id")
            if here in reached or at.page.evaluate("document.activeElement === document.body"):
                break
            reached.add(here)
            outline = at.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert outline != "none"
        assert {"q", "busy", "calm", "fresh", "API"} <= reached


# ------------------------------------------------------------------------------------------------------------ the curve
def test_the_curve_shows_what_the_api_serves(browser: Browser, site: PageSite) -> None:
    with watched(browser, site.url) as at:
        at.open("/backends/calm")
        at.page.locator("canvas").wait_for()
        drawn = at.page.evaluate("document.querySelector('figure[data-metric=ttft]').plot.data")
        served = at.page.evaluate("fetch('/v1/backends/calm/sweeps/sweep-6').then((answer) => answer.json())")
        levels = served["levels"]
        assert drawn[0] == [one["concurrency"] for one in levels]
        for index, name in enumerate(("p50", "p90", "p99")):
            assert drawn[1 + 3 * index] == [one["ttft_s"][name] for one in levels]
            assert drawn[2 + 3 * index] == [one["ttft_s"][f"{name}_interval"][0] for one in levels]
            assert drawn[3 + 3 * index] == [one["ttft_s"][f"{name}_interval"][1] for one in levels]
        assert drawn[10] == [one["goodput_per_second"] for one in levels]
        box = at.page.locator("canvas").bounding_box()
        assert box is not None
        at.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        expect(at.page.locator(".readout").first).to_contain_text(re.compile(r"\d+ in flight: P50 .* goodput"))


# ----------------------------------------------------------------------------------------------------------------- live
def test_what_changes_is_shown_and_said_without_a_reload(browser: Browser) -> None:
    with page_site(FakeOperator(snapshot(calibrated()), records=(curve(),))) as site, watched(browser, site.url) as at:
        at.open("/")
        at.wait_until_live()
        at.page.evaluate("window.isTheSamePage = true")
        link = at.page.get_by_role("link", name="chat")
        link.focus()
        site.do(lambda: site.operator.put(calibrated(organic_in_flight=33.0)))
        expect(at.page.get_by_text("33 in flight, 4 free (11%)")).to_be_visible()
        assert at.page.locator("meter").evaluate("(meter) => meter.value") == 33
        published = replace(calibrated().recommendation, cap=50, version=13)
        site.do(lambda: site.operator.put(calibrated(recommendation=published, up=False)))
        expect(at.page.get_by_role("article").get_by_text("Not answering")).to_be_visible()
        expect(at.page.locator(".big")).to_have_text("50")
        expect(at.page.locator("#said")).to_have_text("chat: cap 50, calibrated")
        expect(link).to_be_focused()
        assert at.page.evaluate("window.isTheSamePage")
        site.do(lambda: setattr(site.operator, "current", snapshot(fallback("new"))))
        expect(at.page.get_by_role("link", name="new")).to_be_visible()
        expect(at.page.get_by_role("article")).to_have_count(1)


def test_ages_go_by_the_servers_clock(browser: Browser, site: PageSite) -> None:
    """The browser's is months behind."""
    with watched(browser, site.url) as at:
        at.open("/backends/calm")
        at.wait_until_live()
        at.page.wait_for_timeout(2100)  # scripts have written every age anew
        expect(at.page.locator("#now")).to_contain_text(re.compile(r"Measured\s*6\d min ago"))
        expect(at.page.locator("#now")).to_contain_text(re.compile(r"a sweep in (60|5\d) min"))


def test_a_stream_that_is_cut_is_said_and_mended(browser: Browser) -> None:
    with (
        page_site(FakeOperator(snapshot(calibrated()))) as site,
        watched(browser, site.url, expected=CUT_OFF) as at,
    ):
        at.open("/")
        at.wait_until_live()
        site.stop()
        expect(at.page.locator("#live")).to_contain_text("not live, last seen")
        expect(at.page.locator("#said")).to_have_text("The page is not live.")
        expect(at.page.locator(".big")).to_have_text("37")
        site.operator.current = snapshot(
            calibrated(recommendation=replace(calibrated().recommendation, cap=9, version=20))
        )
        site.start()
        expect(at.page.locator("#live")).to_have_text("live")
        expect(at.page.locator(".big")).to_have_text("9")


def test_a_page_that_refused_a_form_stays_alive_and_reloads_as_itself(browser: Browser) -> None:
    operator = FakeOperator(snapshot(calibrated()), busy=True)
    with page_site(operator) as site, watched(browser, site.url, expected="409") as at:
        sign_in(at, site, "/backends/chat")
        at.page.get_by_text("Start a sweep …").click()
        at.page.get_by_role("button", name="Start it").click()
        expect(at.page.get_by_role("alert")).to_have_text("A sweep of this backend runs already. Wait for its end.")
        at.wait_until_live()
        site.do(lambda: site.operator.put(calibrated(up=False)))
        expect(at.page.locator("#now").get_by_text("Not answering")).to_be_visible()
        at.page.reload()
        expect(at.page.get_by_role("alert")).to_have_count(0)
        assert operator.asked == []


def test_a_tab_that_nobody_sees_keeps_no_stream_and_catches_up(browser: Browser) -> None:
    turn = """(isHidden) => {
      Object.defineProperty(document, "hidden", { value: isHidden, configurable: true });
      document.dispatchEvent(new Event("visibilitychange"));
    }"""
    with page_site(FakeOperator(snapshot(calibrated()))) as site, watched(browser, site.url) as at:
        at.open("/")
        at.wait_until_live()
        at.page.evaluate(turn, True)
        site.do(lambda: site.operator.put(calibrated(up=False, organic_in_flight=20.0)))
        at.page.wait_for_timeout(2500)
        expect(at.page.get_by_text("12 in flight")).to_be_visible()
        at.page.evaluate(turn, False)
        expect(at.page.get_by_text("20 in flight")).to_be_visible()
        expect(at.page.get_by_text("Not answering")).to_be_visible()
        expect(at.page.locator("#live")).to_have_text("live")


def test_a_session_that_ends_leads_to_the_sign_in_form(browser: Browser) -> None:
    operator = FakeOperator(snapshot(calibrated()))
    with page_site(operator, read_tokens=("reader",)) as site, watched(browser, site.url, expected="401") as at:
        at.open("/sign-in")
        at.page.get_by_label("Token").fill("reader")
        at.page.get_by_role("button", name="Sign in").click()
        at.wait_until_live()
        site.read_tokens = ("rotated",)
        at.page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")  # connects anew
        expect(at.page.get_by_role("heading", name="Sign in")).to_be_visible(timeout=120_000)


def test_what_somebody_types_is_not_taken_away(browser: Browser) -> None:
    with page_site(FakeOperator(snapshot(calibrated()))) as site, watched(browser, site.url) as at:
        sign_in(at, site, "/backends/chat")
        at.wait_until_live()
        at.page.get_by_text("Pin the cap …").click()
        at.page.get_by_label("Who").fill("Ann")
        site.do(lambda: site.operator.put(calibrated(up=False)))
        expect(at.page.locator("#now").get_by_text("Not answering")).to_be_visible()
        expect(at.page.get_by_label("Who")).to_have_value("Ann")


# --------------------------------------------------------------------------------------------------------- odd services
def test_two_hundred_backends(browser: Browser) -> None:
    views = [calibrated(f"chat-{number}") for number in range(200)]
    with page_site(FakeOperator(snapshot(*views))) as site, watched(browser, site.url) as at:
        at.open("/")
        at.wait_until_live()
        assert at.layout_faults() == []
        at.page.get_by_label("Name or model").fill("19")
        expect(at.page.get_by_role("article").filter(visible=True)).to_have_count(12)
        changed = calibrated("chat-190", organic_in_flight=3.0, up=False)
        site.do(lambda: site.operator.put(changed))
        expect(at.page.get_by_text("3 in flight, 34 free (92%)")).to_be_visible()
        expect(at.page.get_by_text("Not answering")).to_be_visible()
        expect(at.page.get_by_role("article").filter(visible=True)).to_have_count(12)
        at.page.get_by_label("Name or model").fill("no such")
        expect(at.page.get_by_text("No backend fits")).to_be_visible()


def test_no_backend_and_a_store_that_fails(browser: Browser) -> None:
    broken = FakeOperator(snapshot(calibrated()), failure=StoreError("The disk is full.", "Free some space."))
    with page_site(broken) as site, watched(browser, site.url) as at:
        at.open("/backends/chat")
        expect(
            at.page.get_by_text("The history cannot be read now. The disk is full. Free some space.")
        ).to_be_visible()
        expect(at.page.locator(".big")).to_have_text("37")
        assert at.layout_faults() == []
        site.do(lambda: setattr(site.operator, "current", replace(snapshot(), backends={})))
        at.open("/")
        expect(at.page.get_by_role("heading", name="No backend is configured.")).to_be_visible()
        assert at.layout_faults() == []


def test_with_read_tokens_the_page_its_stream_and_its_curve_follow_the_session(browser: Browser) -> None:
    operator = FakeOperator(snapshot(calibrated()), records=(curve(),))
    with page_site(operator, read_tokens=("reader",)) as site, watched(browser, site.url, expected="401") as at:
        at.open("/backends/chat")
        expect(at.page.get_by_role("heading", name="Sign in")).to_be_visible()
        at.page.get_by_label("Token").fill("reader")
        at.page.get_by_role("button", name="Sign in").click()
        at.wait_until_live()
        at.page.locator("canvas").wait_for()
        expect(at.page.get_by_text("Sign in with an operator token")).to_be_visible()
        at.page.get_by_role("button", name="Sign out").click()
        expect(at.page.get_by_role("heading", name="Sign in")).to_be_visible()

"""The page shows the numbers, and survives whatever names and reasons say."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser

import httpx
from hypothesis import given, settings
from hypothesis import strategies as st
from support.virtual_time import run_virtual
from support.web_fakes import (
    EPOCH_S,
    FakeOperator,
    app_of,
    calibrated,
    client_of,
    fallback,
    level,
    running,
    snapshot,
)

from calibrator.core.snapshot import BackendView, Health, Snapshot
from calibrator.core.sweep_record import Verdict, VerdictKind
from calibrator.web.page import page

DASH = "\N{EN DASH}"
VOID = {"meta", "link"}


class Reader(HTMLParser):
    """Checks that tags nest, collects tags and visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.update(name for name, _ in attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " | ".join(text.strip() for text in self.texts if text.strip())


def get(path: str, current: Snapshot) -> httpx.Response:
    async def scenario() -> httpx.Response:
        async with client_of(app_of(FakeOperator(current))) as client:
            return await client.get(path)

    return run_virtual(scenario())


def shown(*views: BackendView) -> Reader:
    return Reader(page(snapshot(*views), EPOCH_S, "9.9.9"))


def test_the_numbers_are_there() -> None:
    read = shown(calibrated())
    for text in (
        "cap (requests in flight) | 37 | ",
        "state | calibrated | ",
        "health | ok | ",
        "41 (38 to 44)",
        "12 organic, 0 probes",
        "25 (68% of the cap)",
        "measured | 62 min ago",
        "next sweep | 2027-01-15T09:00:00.000Z",
        "Last sweep: calibrated, 62 min ago, 907 requests in 300 s. certified at 41, refuted at 44",
        f" | 44 | 120 | 1 | 100 ms | {DASH} | {DASH} | {DASH} | 31.42 | 1500 | exceeded | enough passes",
    ):
        assert text in read.text, text


def test_what_is_unknown_says_so() -> None:
    text = shown(fallback()).text
    assert "state | fallback" in text
    assert "headroom | unknown" in text
    assert "measured | never" in text
    assert "Last sweep" not in text


def test_a_running_sweep_is_shown_and_the_page_reloads_faster() -> None:
    view = calibrated(progress=running())
    assert "A sweep is running: level 64, screen, 2 of 50 requests over the limit" in shown(view).text
    assert '<meta http-equiv="refresh" content="3">' in page(snapshot(view), EPOCH_S, "1")
    assert '<meta http-equiv="refresh" content="30">' in page(snapshot(), EPOCH_S, "1")


def test_no_backends_is_a_page_too() -> None:
    assert "No backend is configured." in Reader(page(replace(snapshot(), backends={}), EPOCH_S, "1")).text


HOSTILE = st.one_of(
    st.text(max_size=40),
    st.sampled_from(["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</td></table>", "'-->", "&lt;"]),
)


@settings(max_examples=50)
@given(HOSTILE, HOSTILE, HOSTILE, HOSTILE)
def test_foreign_text_stays_text(name: str, reason: str, objective: str, engine: str) -> None:
    base = calibrated()
    assert base.last_sweep is not None
    bad_level = replace(level(8), verdict=Verdict(VerdictKind.INCONCLUSIVE, (reason,)))
    view = replace(
        base,
        name=name,
        model=engine,
        engine=engine,
        objectives=(objective,),
        health=Health.ERROR,
        health_reason=reason,
        recommendation=replace(base.recommendation, reason=reason),
        last_sweep=replace(base.last_sweep, reason=reason, levels=(bad_level,)),
        progress=replace(running(), phase=objective, verdict=reason),
    )
    plain = calibrated(progress=running(), health=Health.ERROR, health_reason="x")
    plain = replace(plain, last_sweep=replace(base.last_sweep, levels=(level(8),)))
    read, expected = shown(view), shown(plain)
    # An empty reason has no span of its own; apart from that the structure is the same whatever the texts say.
    assert read.tags == expected.tags
    assert read.attributes == expected.attributes


def test_the_page_may_load_its_own_files_and_nothing_else() -> None:
    response = get("/", snapshot())
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.headers["content-security-policy"] == (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    )
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["x-frame-options"] == "DENY"
    assert "script" not in Reader(response.text).tags
    assert "style" not in Reader(response.text).attributes  # the policy would block it


def test_the_style_sheet_is_served_and_colours_every_enumeration_that_needs_it() -> None:
    response = get("/static/page.css", snapshot())
    assert response.headers["content-type"] == "text/css; charset=utf-8"
    for word in ("calibrated", "fallback", "guarded", "stale", "overridden", "error", "exceeded", "within"):
        assert f".{word}" in response.text, word

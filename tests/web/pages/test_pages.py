"""The pages as the server makes them: complete without scripts, and text stays text whatever names and reasons say."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from importlib.resources import files

import httpx
import pytest
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
    record,
    running,
    snapshot,
)

from calibrator.core.admission.admission import Deferral, DeferralReason
from calibrator.core.publish.snapshot import (
    BackendView,
    CapBeforeCut,
    CapPoint,
    GuardView,
    Health,
    Override,
    ReplicaStatus,
    ReplicaView,
    Snapshot,
    State,
)
from calibrator.core.records.history import Capacity
from calibrator.core.records.sweep import Grade, Verdict, VerdictKind
from calibrator.errors import StoreError
from calibrator.ports.sharing import Poller
from calibrator.web.pages.assets import ASSETS
from calibrator.web.pages.history import Change, history_svg

VOID = {"meta", "link", "br", "input"}
BROWSER = {"Accept": "text/html"}


class Reader(HTMLParser):
    """Checks that tags nest, collects tags, attributes and visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.extend((name, value or "") for name, value in attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def get(path: str, operator: FakeOperator | Snapshot, **options: object) -> httpx.Response:
    used = operator if isinstance(operator, FakeOperator) else FakeOperator(operator)

    async def scenario() -> httpx.Response:
        async with client_of(app_of(used, **options)) as client:  # type: ignore[arg-type] # the caller knows app_of
            return await client.get(path, headers=BROWSER)

    return run_virtual(scenario())


def overview(*views: BackendView, query: str = "") -> Reader:
    answer = get(f"/{query}", snapshot(*views))
    assert answer.status_code == 200
    return Reader(answer.text)


def of_backend(view: BackendView, operator: FakeOperator | None = None) -> Reader:
    used = operator or FakeOperator(snapshot(view), records=(record(backend=view.name),))
    answer = get(f"/backends/{view.name}", used)
    assert answer.status_code == 200
    return Reader(answer.text)


# --------------------------------------------------------------------------------------------------------- ten seconds
@pytest.mark.parametrize("page", [overview, of_backend])
def test_a_page_says_what_the_cap_is_how_sure_how_near_the_edge_and_what_comes(page: object) -> None:
    assert callable(page)
    text = page(calibrated()).text
    near, sure = "12 in flight, 25 free ( 68% )", "38 to 44"
    for words in ("37", "calibrated", near, "certified", sure, "in 60 min", "62 min ago"):
        assert words in text, words
    assert "ttft p99 <= 500ms" in text


def test_the_page_of_a_backend_shows_the_evidence_in_tables() -> None:
    pollers = (Poller("envoy-1", False, 20, 20, 1.5, 5.0), Poller("envoy-2", False, 0, 17, 0.2, 0.0))
    replicas = (ReplicaView("http://a/v1", ReplicaStatus.READY, 12.0, "vllm", "m", "0.9"),)
    view = calibrated(replicas=replicas)
    operator = FakeOperator(
        snapshot(view),
        records=(record(),),
        published=(view.recommendation, replace(view.recommendation, version=11, cap=30, published_at=EPOCH_S - 9e3)),
        polling=pollers,
    )
    read = of_backend(view, operator)
    for words in (
        "32 120 1 100 ms 200 ms",  # a level of the curve: in flight, requests, over, P50, P90
        "exceeded enough passes",
        "41 at once 123 9 100 ms 200 ms",  # the burst
        "envoy-1 20 20 1.5 s ago 5 s",
        "envoy-2 waits 17 200 ms ago",
        "http://a/v1 ready 12 vllm 0.9",
        "30 → 37",
        "That is 30 requests/s, 90,000 output tokens/min",
    ):
        assert words in read.text, words
    assert ("href", "/v1/backends/chat/sweeps/sweep-6/report") in read.attributes


def test_every_chart_has_a_table_and_words_for_who_cannot_see_it() -> None:
    trend = (CapPoint(EPOCH_S - 100.0, 37, State.CALIBRATED),)
    view = calibrated(trend=trend)
    operator = FakeOperator(snapshot(view), records=(record(),), published=(view.recommendation,))
    text = get("/backends/chat", operator).text
    assert text.count("<svg") == 4  # the trend, the curve, throughput, the history
    assert len(re.findall(r'<svg [^>]*role="img" aria-label="[^"]+"', text)) == 4
    assert text.count("<table") >= 2


def test_what_is_unknown_says_so() -> None:
    text = of_backend(fallback()).text
    for words in (
        "the headroom", "Nothing was measured yet.", "not measured", "Measured never", "None was found yet.",
        "Nobody polls this cap",
    ):  # fmt: skip
        assert words in text, words


def test_a_running_sweep_is_shown_level_by_level() -> None:
    view = calibrated(progress=replace(running(), sweep_id="sweep-7"), next_sweep_at=None)
    under_way = record("sweep-7", outcome=None, ended_at=None, grade=None, capacity=None, reason="")
    text = of_backend(view, FakeOperator(snapshot(view), records=(under_way,))).text
    assert "64 in flight, screen ; 2 of 50 over the SLA" in text
    assert "Under way." in text
    assert "32 120 1" in text
    assert "a sweep is running; its end may change the cap" in text


def test_a_sweep_that_waits_for_its_turn_comes_next() -> None:
    assert (
        "a sweep starts as soon as its engines are free (after the upgrade)"
        in overview(calibrated(queued="after the upgrade")).text
    )


def test_no_backends_is_a_page_too() -> None:
    text = Reader(get("/", replace(snapshot(), backends={})).text).text
    assert "No backend is configured." in text


def test_two_hundred_backends_are_one_page_and_a_filter_finds_among_them() -> None:
    views = [calibrated(f"chat-{number}") for number in range(199)]
    views.append(calibrated("odd", health=Health.ERROR, health_reason="the model is gone"))
    assert overview(*views).tags.count("article") == 200
    assert overview(*views, query="?q=chat-19").tags.count("article") == 10
    found = overview(*views, query="?show=look")
    assert found.tags.count("article") == 1
    assert "200 backends, 1 needs a look" in found.text
    assert "No backend fits." in overview(*views, query="?q=nope").text


# --------------------------------------------------------------------------------------------------------------- flags
PIN = Override(5, "incident 7", "Ann", EPOCH_S - 60.0, EPOCH_S + 600.0)
BASE = calibrated()
PUBLISHED = BASE.recommendation
FLAGGED = {
    "an error": (calibrated(health=Health.ERROR, health_reason="the model is gone"), "Error : the model is gone"),
    "silence": (calibrated(up=False), "Not answering : the engine does not answer"),
    "observing": (calibrated(health=Health.OBSERVE), "Observing : no probes are sent"),
    "no replica": (calibrated(ready_replicas=0), "No replica ready : the last cap stays in force"),
    "discovery": (calibrated(discovery_problem="no such name"), "Replicas : may be out of date: no such name"),
    "metrics": (calibrated(metrics_problem="refused; open it"), "Engine metrics : refused; open it"),
    "staleness": (calibrated(recommendation=replace(PUBLISHED, valid_until=EPOCH_S - 7200.0)), "Stale 2 h ago"),
    "a pin": (
        calibrated(
            override=PIN, underlying=PUBLISHED, recommendation=replace(PUBLISHED, cap=5, state=State.OVERRIDDEN)
        ),
        "Pinned 60 s ago : to 5 by Ann: incident 7; without the pin it would be 37 (ends in 10 min )",
    ),
    "the guard": (
        calibrated(
            recommendation=replace(
                PUBLISHED, cap=30, state=State.GUARDED, before_cut=CapBeforeCut(37, 37, State.CALIBRATED, EPOCH_S -
                300.0)
            )
        ),
        "Guarded 5 min ago : live users broke the SLA, so the cap was lowered from 37",
    ),
    "a breach": (
        calibrated(guard=GuardView(True, {}, {}, "latency", EPOCH_S - 300.0)),
        "SLA broken 5 min ago : live users see it broken (latency)",
    ),
    "infeasible": (
        fallback(recommendation=replace(fallback().recommendation, grade=Grade.INFEASIBLE)),
        "SLA out of reach : even the lowest level breaks it",
    ),
    "the shadow": (calibrated(shadow=fallback().recommendation), "Shadow : gateways are told 8"),
    "room for probes": (calibrated(progress=running(), reserved_for_probes=7), "Sweeping : gateways are told 30"),
    "too many": (calibrated(gateway_clients_over_cap=3), "Too many gateways : 3 more pollers"),
    "held back": (
        calibrated(deferred=Deferral(DeferralReason.WINDOW, "no window is open", EPOCH_S + 7200.0)),
        "Sweep held back : no window is open (ends in 2 h )",
    ),
    "doubt": (BASE, "Doubt : no server metrics"),
    "traffic": (calibrated(traffic_note="prompts are longer"), "Traffic : prompts are longer"),
    "sharing": (calibrated(measured_by="other"), "Shared engines : measured together with 'other'"),
}  # fmt: skip


@pytest.mark.parametrize("flag", FLAGGED)
def test_whatever_is_not_as_usual_is_told_in_words(flag: str) -> None:
    view, words = FLAGGED[flag]
    assert words in of_backend(view).text


def test_the_worst_comes_first() -> None:
    view = calibrated(health=Health.ERROR, health_reason="gone", metrics_problem="refused", traffic_note="longer")
    text = overview(view).text
    assert text.index("Error") < text.index("Engine metrics") < text.index("Doubt")


# ------------------------------------------------------------------------------------------------------------- history
def test_the_history_tells_guard_replicas_and_sweeps_that_changed_nothing() -> None:
    base = calibrated().recommendation
    published = (
        replace(base, version=14, cap=60, replicas=2, published_at=EPOCH_S - 100.0),
        replace(base, version=13, cap=30, published_at=EPOCH_S - 200.0),
        replace(base, version=12, cap=24, state=State.GUARDED, reason="ttft", published_at=EPOCH_S - 300.0),
        replace(base, version=11, cap=30, published_at=EPOCH_S - 400.0),
    )
    other = record(
        "sweep-5",
        capacity=Capacity(40, 38, 44),
        ended_at=EPOCH_S - 150.0,
        reason="nothing new",
        trigger="drift: longer prompts",
    )
    pins = (Override(5, "incident 7", "Ann", EPOCH_S - 60.0, EPOCH_S - 30.0),)
    operator = FakeOperator(snapshot(), records=(record(), other), published=published, past_pins=pins)
    text = of_backend(calibrated(), operator).text
    unchanged = "calibrated, the cap stayed: nothing new (swept because of drift: longer prompts) report"
    pinned, ended = "5 pin pinned by Ann: incident 7", "pin the pin of Ann ended"
    for words in ("30 → 60 replicas 1 to 2 replicas counted", "30 → 24 guard ttft", unchanged, pinned, ended):
        assert words in text, words


def test_the_trend_is_drawn_from_what_was_published() -> None:
    trend = (CapPoint(EPOCH_S - 100.0, 8, State.FALLBACK), CapPoint(EPOCH_S - 50.0, 37, State.CALIBRATED))
    text = get("/", snapshot(calibrated(trend=trend))).text
    assert 'aria-label="cap of late: 8 to 37, lowest 8, highest 37"' in text
    assert "V3.0" in text  # up to the upper edge


def test_a_store_that_fails_costs_the_history_and_nothing_else() -> None:
    operator = FakeOperator(snapshot(), failure=StoreError("The disk is full.", "Free some space."))
    text = of_backend(calibrated(), operator).text
    assert "The history cannot be read now. The disk is full. Free some space." in text
    assert "12 in flight, 25 free" in text
    assert "12 in flight, 25 free" in overview(calibrated()).text


# ------------------------------------------------------------------------------------------------------------ security
HOSTILE = st.one_of(
    st.text(max_size=40),
    st.sampled_from(["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</td></table>", "'-->", "&lt;"]),
)


def hostile(reason: str, objective: str, engine: str) -> tuple[BackendView, FakeOperator]:
    base = calibrated()
    bad_level = replace(level(8), verdict=Verdict(VerdictKind.EXCEEDED, (reason,)))
    view = replace(
        base,
        model=engine,
        engine=engine,
        health=Health.ERROR,
        health_reason=reason,
        recommendation=replace(base.recommendation, reason=reason, warnings=(engine,)),
        progress=replace(running(), phase=objective, verdict=reason),
        replicas=(ReplicaView(reason, ReplicaStatus.READY, 1.0, engine, engine, engine),),
        override=Override(5, reason, engine, EPOCH_S, EPOCH_S + 9.0),
        underlying=base.recommendation,
    )
    done = record("sweep-7", reason=reason, remedy=engine, levels=(bad_level,))
    pollers = (Poller(engine, True, 1, 1, 0.0, 0.0),)
    told = FakeOperator(snapshot(view), records=(done,), published=(view.recommendation,), polling=pollers)
    return view, told


@cache
def harmless(path: str) -> Reader:
    return Reader(get(path, hostile("x", "x", "x")[1]).text)


@settings(max_examples=25, deadline=None)
@given(HOSTILE, HOSTILE, HOSTILE)
def test_foreign_text_stays_text(reason: str, objective: str, engine: str) -> None:
    for path in ("/", "/backends/chat"):
        read, expected = Reader(get(path, hostile(f"x{reason}", f"x{objective}", f"x{engine}")[1]).text), harmless(path)
        # Whatever the texts say, the structure is the same.
        assert read.tags == expected.tags
        assert [name for name, _ in read.attributes] == [name for name, _ in expected.attributes]


def test_a_page_may_load_its_own_files_and_nothing_else() -> None:
    for path in ("/", "/backends/chat"):
        response = get(path, FakeOperator(snapshot(), records=(record(),)))
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self';" in policy
        assert "unsafe" not in policy
        assert response.headers["referrer-policy"] == "same-origin"
        read = Reader(response.text)
        names = [name for name, _ in read.attributes]
        assert "style" not in names  # the policy would block it
        assert not [name for name in names if name.startswith("on")]
        loaded = [value for name, value in read.attributes if name in ("src", "href")]
        assert all(value.startswith(("/", "#")) and not value.startswith("//") for value in loaded), loaded
        assert "<script>" not in response.text


@pytest.mark.parametrize("name", ASSETS)
def test_the_files_of_the_pages_are_served_with_their_types_and_only_once(name: str) -> None:
    async def scenario() -> None:
        async with client_of(app_of(FakeOperator(snapshot()))) as client:
            first = await client.get(f"/static/{name}")
            assert (first.status_code, first.headers["content-type"].partition(";")[0]) == (200, ASSETS[name][1])
            again = await client.get(f"/static/{name}", headers={"If-None-Match": first.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")
            assert (await client.get("/static/..%2fpage.py")).status_code == 404

    run_virtual(scenario())


def test_the_chart_library_keeps_its_licence_and_its_version() -> None:
    folder = files("calibrator.web.pages") / "static" / "vendor" / "uplot"
    assert "MIT" in (folder / "LICENSE").read_text("utf-8")
    script = (folder / "uPlot.iife.min.js").read_text("utf-8")
    assert re.match(r"/\*! https://github.com/leeoniya/uPlot \(v\d+\.\d+\.\d+\) \*/", script)


def test_the_style_sheet_colours_every_state_and_verdict() -> None:
    text = get("/static/page.css", snapshot()).text
    for word in [*State, *VerdictKind]:
        assert f".{word.value}" in text, word


def test_a_mark_of_what_changed_nothing_stands_at_the_cap_in_force() -> None:
    rows = [
        Change("2027-01-15T03:00:00Z", "sweep", "raised", 40, 20, number=3),
        Change("2027-01-15T02:00:00Z", "sweep", "the cap stayed", number=2),
        Change("2027-01-15T01:00:00Z", "sweep", "first", 20, number=1),
    ]
    newest, unchanged, first = re.findall(r'<circle [^>]*cy="([\d.]+)"', history_svg(rows, EPOCH_S))
    assert unchanged == first != newest

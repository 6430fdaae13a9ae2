"""The pages: `/`, an overview of all backends; `/backends/{name}`, one backend in detail.

Rendered on the server and complete without JavaScript; `static/live.js` updates them from `GET /v1/events`, and
`static/curve.js` replaces the static charts of the curve. Templates get the same documents that the API serves. If the
store fails, the page lacks the history and says so; caps, states and headroom do not depend on the store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import quote

from markupsafe import Markup
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from calibrator.core.publish.snapshot import BackendView
from calibrator.core.report.formats import timestamp
from calibrator.errors import StoreError
from calibrator.ports.clock import Clock
from calibrator.ports.operator import Operator
from calibrator.web.http.auth import Access, Gatekeeper
from calibrator.web.http.operation import Operation, ResponseSpec
from calibrator.web.http.requests import Views, parsed_query
from calibrator.web.pages.flags import GRADES, flags, needs_attention, summary, upcoming
from calibrator.web.pages.history import changes, history_svg, sparkline
from calibrator.web.pages.render import Frame, html
from calibrator.web.report.chart import svg
from calibrator.web.report.report import charts
from calibrator.web.wire.backends import BackendDocument
from calibrator.web.wire.documents import (
    backend_document,
    client_document,
    override_entry,
    published_sweep,
    recommendation_document,
)
from calibrator.web.wire.events import OverrideEntry, RecommendationDocument
from calibrator.web.wire.sweeps import SweepDocument, SweepSummaryDocument

RECOMMENDATIONS_SHOWN = 40
SWEEPS_SHOWN = 20
STORE_LIMIT_S = 5.0  # a page must load even while the database hangs
NOTICES: Mapping[str, str] = {  # by the value of `?done=`
    "sweep": "The sweep is queued. It starts as soon as its engines are free.",
    "cancel": "The sweep is being cancelled. The cap does not change.",
    "override": "The override is in force.",
    "unstored": "The override is in force but not stored yet, and a restart would lose it. Storing is retried.",
    "clear": "The override has ended.",
}


class OverviewQuery(BaseModel):
    model_config = ConfigDict(frozen=True)

    q: str = Field(default="", max_length=200, description="words that the name or model of a backend must contain")
    show: str = Field(
        default="all",
        max_length=20,
        description="all | attention: backends that need attention | sweeping",
    )


class BackendPageQuery(BaseModel):
    model_config = ConfigDict(frozen=True)

    done: str = Field(default="", max_length=20, description="form that has just succeeded")


@dataclass(frozen=True, slots=True)
class Pages:
    operator: Operator
    clock: Clock
    views: Views
    gatekeeper: Gatekeeper
    software_version: str
    has_writes: bool  # an operator token was configured when the service started

    def frame(self, request: Request, title: str, here: str, *, is_live: bool = True) -> Frame:
        tokens = any(self.gatekeeper.operator_tokens()) or not self.gatekeeper.reading_is_open
        caller = self.gatekeeper.caller(request)
        return Frame(
            title=title,
            now=timestamp(self.clock.wall()) or "",
            version=self.software_version,
            here=here,
            is_operator=self.has_writes and caller.has_session and caller.access is Access.OPERATE,
            is_signed_in=caller.has_session,
            may_sign_in=tokens,
            is_live=is_live,
        )

    # --------------------------------------------------------------------------------------------------- overview
    async def overview(self, request: Request) -> Response:
        query = parsed_query(OverviewQuery, request)
        now = self.clock.wall()
        every = [backend_document(view, now) for view in self.views.all().values()]
        shown = [one for one in every if _is_selected(one, query)]
        frame = self.frame(request, "calibrator", "/")
        return html(
            "page_overview.html.jinja",
            frame,
            cards=[_card(one, now) for one in shown],
            query=query,
            total=len(every),
            attention=sum(needs_attention(one) for one in every),
            sweeping=sum(one.progress is not None for one in every),
            summary=summary(every),
            store_problem=self.operator.snapshot().store_problem,
        )

    # ---------------------------------------------------------------------------------------------------- backend
    async def backend(self, request: Request) -> Response:
        name = self.views.one(request.path_params["name"]).name
        done = parsed_query(BackendPageQuery, request).done
        return await self.show_backend(request, name, notice=NOTICES.get(done, ""))

    async def show_backend(
        self, request: Request, name: str, status: HTTPStatus = HTTPStatus.OK, **form: object
    ) -> Response:
        """`form`: the form that was refused, with its values and the problem."""
        now, view = self.clock.wall(), self.views.one(name)
        backend = backend_document(view, now)
        history = await self._history(view)
        rows = changes(history.published, history.sweeps, history.overrides, timestamp(now) or "")
        answer = {"form": "", "problem": "", "notice": "", "values": {}, **form}
        return html(
            "page_backend.html.jinja",
            self.frame(request, name, path_of(name)),
            status,
            **_card(backend, now),
            **answer,
            has_writes=self.has_writes,
            history_problem=history.problem,
            sweep=history.shown,
            charts=[] if history.shown is None else _drawn(history.shown),
            levels=[] if history.shown is None else sorted(history.shown.levels, key=lambda one: one.concurrency),
            metrics=list(dict.fromkeys(objective.metric.value for objective in backend.objectives)),
            history=rows,
            history_svg=Markup(history_svg(rows, now)),  # noqa: S704 - it escapes its texts
            clients=[client_document(one) for one in self.operator.pollers(name)],
        )

    async def _history(self, view: BackendView) -> _Kept:
        sweep_id = _shown_sweep(view)
        try:
            async with asyncio.timeout(STORE_LIMIT_S):
                published = await self.operator.recommendations(view.name, RECOMMENDATIONS_SHOWN)
                ended = await self.operator.sweeps(view.name, SWEEPS_SHOWN)
                overrides = await self.operator.pins(view.name)
                shown = None if sweep_id is None else await self.operator.sweep(sweep_id)
        except (StoreError, TimeoutError) as error:
            problem = str(error) if isinstance(error, StoreError) else "The database does not respond."
            return _Kept([recommendation_document(view.recommendation)], [], [], None, problem)
        return _Kept(
            [recommendation_document(one) for one in published],
            [SweepSummaryDocument.model_validate(one) for one in ended],
            [override_entry(one) for one in overrides],
            None if shown is None else published_sweep(view, shown),
            "",
        )

    def operations(self) -> tuple[Operation, ...]:
        page = (ResponseSpec(200, "The page", media_type="text/html"),)
        return (
            Operation(
                "GET", "/", "getPage", "Page: overview of all backends", self.overview, page,
                access=Access.PAGE, query=OverviewQuery, problems=(400, 503),
            ),
            Operation(
                "GET", "/backends/{name}", "getBackendPage", "Page: one backend in detail", self.backend, page,
                access=Access.PAGE, query=BackendPageQuery, problems=(400, 404, 503),
            ),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Kept:
    """What the store returned; `problem`: why it did not."""

    published: Sequence[RecommendationDocument]
    sweeps: Sequence[SweepSummaryDocument]
    overrides: Sequence[OverrideEntry]
    shown: SweepDocument | None
    problem: str


def path_of(name: str) -> str:
    return f"/backends/{quote(name, safe='')}"


def _card(backend: BackendDocument, now: float) -> dict[str, object]:
    return {
        "backend": backend,
        "flags": flags(backend),
        "grade": GRADES[backend.grade],
        "upcoming": upcoming(backend),
        "spark": Markup(sparkline(backend, now)),  # noqa: S704 - it writes numbers only
    }


def _is_selected(backend: BackendDocument, query: OverviewQuery) -> bool:
    words = query.q.lower().split()
    text = f"{backend.name} {backend.model}".lower()
    if query.show == "attention" and not needs_attention(backend):
        return False
    if query.show == "sweeping" and backend.progress is None:
        return False
    return all(word in text for word in words)


def _shown_sweep(view: BackendView) -> str | None:
    """The running one, else the one behind the cap, else the last."""
    if view.progress is not None:
        return view.progress.sweep_id
    underlying = view.underlying or view.recommendation
    return underlying.sweep_id or (None if view.last_sweep is None else view.last_sweep.sweep_id)


@dataclass(frozen=True, slots=True)
class _Picture:
    """One chart; `metric` and `limit_s` of its objective, empty for the chart of throughput."""

    title: str
    svg: Markup
    metric: str = ""
    limit_s: float | None = None


def _drawn(sweep: SweepDocument) -> list[_Picture]:
    *curves, rates = charts(sweep)
    found = [
        _Picture(chart.title, Markup(svg(chart)), objective.metric.value, objective.limit_s)  # noqa: S704 - it escapes
        for chart, objective in zip(curves, sweep.provenance.objectives, strict=True)
    ]
    return [*found, _Picture(rates.title, Markup(svg(rates)))]  # noqa: S704 - `svg` escapes its texts

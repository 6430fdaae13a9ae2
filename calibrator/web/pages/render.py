"""Templates of the pages, and the formats of values in them.

Names, reasons and warnings come from configuration files and from other servers. So autoescape is on in all templates;
the only markup that is not escaped comes from `web.report.chart` and `web.pages.history`, which escape their texts; and
the Content-Security-Policy forbids inline scripts and styles, foreign resources and frames (`web.http.headers`).

Times are `<time datetime>` elements that contain an age, by the server's clock. Scripts update the ages, by the same
clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from http import HTTPStatus

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from starlette.responses import HTMLResponse

from calibrator.web.http.headers import PAGE_HEADERS
from calibrator.web.pages.history import seconds, span

HEADERS = {
    **PAGE_HEADERS,
    "Referrer-Policy": "same-origin",  # with `no-referrer` a form's POST would carry `Origin: null`
}
UNKNOWN = "unknown"
NOTHING = "\N{EN DASH}"  # in cells of a table


@dataclass(frozen=True, slots=True)
class Frame:
    """What all pages have in common."""

    title: str
    now: str  # the server's clock, RFC 3339
    version: str
    here: str  # path, to return to after signing in
    is_operator: bool = False
    is_signed_in: bool = False
    may_sign_in: bool = False  # a token is configured
    is_live: bool = True  # the page has content that changes


def html(template: str, frame: Frame, status: HTTPStatus = HTTPStatus.OK, **values: object) -> HTMLResponse:
    text = environment().get_template(template).render(frame=frame, **values)
    return HTMLResponse(text, status, headers=HEADERS)


@cache
def environment() -> Environment:
    made = Environment(
        loader=PackageLoader("calibrator.web.pages", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"duration": duration, "number": number, "percent": percent, "bounds": bounds, "moment": moment}
    made.globals |= {"unknown": UNKNOWN, "nothing": NOTHING}
    return made


def duration(value_s: float | None) -> str:
    if value_s is None:
        return NOTHING
    return f"{value_s * 1e3:.3g} ms" if value_s < 0.9995 else f"{value_s:.3g} s"


def number(value: float | None) -> str:
    if value is None:
        return NOTHING
    return f"{value:,.0f}" if abs(value) >= 1e3 else f"{value:.4g}"


def percent(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.0%}"


def bounds(interval: list[float | None] | None) -> str:
    """An interval of latencies; `?` where n does not bound it from above."""
    if interval is None:
        return ""
    low, high = interval
    return f"{duration(low)} to {'?' if high is None else duration(high)}"


def moment(time: str | None, now: str, absent: str = "never") -> Markup | str:
    """`62 min ago` or `in 5 min`, with the exact time as tooltip and for scripts."""
    if time is None:
        return absent
    left_s = seconds(time) - seconds(now)
    age = f"in {span(left_s)}" if left_s > 0 else f"{span(-left_s)} ago"
    title = f"{time[:10]} {time[11:19]} UTC"
    return Markup('<time datetime="{}" title="{}" data-age>{}</time>').format(time, title, age)

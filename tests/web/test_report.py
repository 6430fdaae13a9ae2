"""The report: every number of the document, nothing from outside the file, hostile texts, two sweeps side by side."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from support.virtual_time import run_virtual
from support.web_fakes import FakeOperator, app_of, calibrated, client_of, level, record, snapshot
from typer.testing import CliRunner

from calibrator.cli.app import app
from calibrator.core.render import sweep_document
from calibrator.core.sweep_record import SweepRecord, VerdictKind
from calibrator.web.chart import CUT, Chart, Line, Point, svg
from calibrator.web.report import charts, differences, report
from calibrator.web.sweep_models import SweepDocument

HOSTILE = "<script>alert(1)</script>|`x`\n# y"


def document(sweep: SweepRecord | None = None, cap: int | None = 37) -> SweepDocument:
    return SweepDocument.model_validate(sweep_document(sweep or record(), cap=cap))


class _Tags(HTMLParser):
    """Tags and attributes of a page; text by tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in {"src", "href", "action"}]
        if tag not in {"meta", "br", "circle", "path", "rect"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in {"circle", "path", "rect"}:
            assert self.open.pop() == tag


def test_the_file_stands_alone_and_its_tags_are_balanced() -> None:
    page = _Tags(report(document(), "html", document(record("sweep-5"))))
    assert page.addresses == []
    assert page.open == []
    assert {"script", "link", "iframe", "img"}.isdisjoint(page.tags)
    assert page.tags.count("svg") == len(charts(document()))


@pytest.mark.parametrize("kind", ["html", "md"])
def test_it_states_the_answer_the_conditions_and_every_level(kind: str) -> None:
    sweep = record()
    text = report(document(sweep), kind)
    assert sweep.capacity is not None
    measured = sweep.provenance
    for fact in (
        str(sweep.capacity.estimate), str(sweep.capacity.low), str(sweep.capacity.high), sweep.sweep_id, measured.url,
        measured.model, measured.workload, f"seed {measured.seed}", f"calibrator {measured.software}",
        str(sweep.requests),
    ):  # fmt: skip
        assert fact in text.replace("\\", ""), fact
    for one in sweep.levels:
        row = next(line for line in text.splitlines() if re.match(rf"(<tr>.*>|\| ){one.concurrency}( \||<)", line))
        assert str(one.n) in row
        assert one.verdict.kind.value in row


@pytest.mark.parametrize("kind", ["html", "md"])
def test_texts_of_strangers_stay_texts(kind: str) -> None:
    sweep = record(reason=HOSTILE, warnings=(HOSTILE,))
    sweep = replace(sweep, provenance=replace(sweep.provenance, model=HOSTILE))
    text = report(document(sweep), kind)
    assert "<script" not in text.replace("\\<", "")
    if kind == "md":
        assert "\n# y" not in text
        assert all(
            line.count("|") - line.count("\\|") == 3 for line in text.splitlines() if line.startswith("| backend")
        )


def test_a_sweep_without_an_answer_says_so() -> None:
    text = report(document(record(capacity=None, grade=None, levels=()), cap=None), "html")
    assert "no capacity was found" in text
    assert "<svg" not in text


def test_what_differs_is_named_before_it_is_compared() -> None:
    ours = record()
    theirs = replace(ours, sweep_id="older", provenance=replace(ours.provenance, model="other", software="0.0.9"))
    assert [one.name for one in differences(document(ours), document(theirs))] == ["model", "calibrator"]
    assert "Conditions differ" in report(document(ours), "html", document(theirs))
    assert "same conditions" in report(document(ours), "html", document(replace(ours, sweep_id="older")))


def test_levels_of_both_sweeps_stand_in_one_table() -> None:
    ours, theirs = record(levels=(level(8),)), record("older", levels=(level(8), level(16, VerdictKind.EXCEEDED)))
    section = report(document(ours), "html", document(theirs)).split("Compared with")[1]
    assert re.findall(r'<th scope="row">(\d+)</th>', section) == ["8", "16"]


# --------------------------------------------------------------------------------------------------------------- chart
def _parsed(chart: Chart) -> ET.Element:
    return ET.fromstring(svg(chart))  # noqa: S314 - our own picture


def _dots(chart: Chart) -> list[tuple[float, float]]:
    return [(float(dot.attrib["cx"]), float(dot.attrib["cy"])) for dot in _parsed(chart).iter("circle")]


def test_more_concurrency_is_right_and_more_latency_is_up_in_equal_steps_for_equal_ratios() -> None:
    dots = _dots(Chart("t", "s", [Line("p99", "p99", [Point(2.0**k, 0.1 * k) for k in range(4)])]))
    gaps = [right[0] - left[0] for left, right in pairwise(dots)]
    assert gaps == pytest.approx([gaps[0]] * 3, abs=0.2)
    assert [y for _, y in dots] == sorted((y for _, y in dots), reverse=True)


def test_an_overload_does_not_squeeze_the_part_near_the_limit() -> None:
    near, far = _dots(Chart("t", "s", [Line("p99", "p99", [Point(8, 0.3), Point(64, 300.0)])], limit=0.3))
    top = min(near[1], far[1])
    bottom = float(next(_parsed(Chart("t", "s", [Line("p", "p99", [Point(8, 0.0)])])).iter("circle")).attrib["cy"])
    assert far[1] == top
    assert (bottom - near[1]) / (bottom - far[1]) == pytest.approx(1 / CUT / 1.08, rel=0.02)


def test_nothing_measured_is_no_picture_and_infinite_values_are_left_out() -> None:
    assert svg(Chart("t", "s", [Line("p99", "p99", [])])) == ""
    assert len(_dots(Chart("t", "s", [Line("p99", "p99", [Point(1, 0.1), Point(2, float("inf"))])]))) == 1


def test_one_level_alone_is_drawn() -> None:
    assert len(_dots(Chart("<t>", "s", [Line("p99", "p99", [Point(1, 0.0)])], limit=0.3, band=(1, 4), mark=2))) == 1


# ----------------------------------------------------------------------------------------------------- page and command
def _ask(url: str) -> tuple[int, str, str]:
    async def scenario() -> tuple[int, str, str]:
        operator = FakeOperator(snapshot(calibrated()), (record(), record("sweep-5")))
        async with client_of(app_of(operator)) as client:
            answer = await client.get(url)
            return answer.status_code, answer.headers["content-type"], answer.text

    return run_virtual(scenario())


def test_the_service_serves_it() -> None:
    status, kind, text = _ask("/v1/backends/chat/sweeps/sweep-6/report")
    assert (status, kind) == (200, "text/html; charset=utf-8")
    assert text == report(document(), "html")
    status, kind, text = _ask("/v1/backends/chat/sweeps/sweep-6/report?format=md&compare=sweep-5")
    assert (status, kind) == (200, "text/markdown; charset=utf-8")
    assert "Compared with sweep-5" in text


@pytest.mark.parametrize(("query", "status"), [("?format=pdf", 400), ("?compare=absent", 404)])
def test_what_cannot_be_reported_is_refused(query: str, status: int) -> None:
    assert _ask(f"/v1/backends/chat/sweeps/sweep-6/report{query}")[0] == status


def _written(folder: Path, text: str) -> str:
    file = folder / "sweep.json"
    file.write_text(text)
    return str(file)


def test_the_verb_makes_the_file_from_what_sweep_printed(tmp_path: Path) -> None:
    source = _written(tmp_path, json.dumps(sweep_document(record(), cap=37)))
    made = tmp_path / "report.html"
    assert CliRunner().invoke(app, ["report", source, "--to", str(made)]).exit_code == 0
    assert made.read_text() == report(document(), "html")
    printed = CliRunner().invoke(app, ["report", source, "--format", "json"])
    assert SweepDocument.model_validate_json(printed.stdout) == document()


@pytest.mark.parametrize(
    ("text", "more", "code", "says"),
    [
        ("{}", [], 2, "is no sweep (sweep_id"),
        ("no json", [], 2, "is no sweep"),
        (None, [], 2, "cannot be read"),
        ("{}", ["--format", "pdf"], 2, "not a format"),
        ("{}", ["--token-env", "NO_SUCH_VARIABLE_HERE"], 2, "not set"),
    ],
)
def test_the_verb_names_what_is_wrong(tmp_path: Path, text: str | None, more: list[str], code: int, says: str) -> None:
    source = str(tmp_path / "absent.json") if text is None else _written(tmp_path, text)
    done = CliRunner().invoke(app, ["report", source, *more])
    assert done.exit_code == code
    assert says in done.output


def test_a_service_that_is_not_there_is_unreachable() -> None:
    done = CliRunner().invoke(app, ["report", "http://127.0.0.1:9/v1/backends/a/sweeps/b"])
    assert done.exit_code == 3

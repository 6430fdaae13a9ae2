"""The report: every number of the document, nothing from outside the file, hostile texts, two sweeps side by side."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from support.virtual_time import run_virtual
from support.web_fakes import FakeOperator, app_of, calibrated, client_of, latency, level, record, snapshot
from typer.testing import CliRunner

from calibrator.cli.app import app
from calibrator.core.records.history import Capacity
from calibrator.core.records.sweep import LevelReport, SweepRecord, VerdictKind
from calibrator.core.stats.quantile import QuantileEstimate
from calibrator.web.report.chart import CUT, Chart, Line, Point, standalone, svg
from calibrator.web.report.comparison import Change, change, compare, differences
from calibrator.web.report.report import STYLE, charts, report, verification
from calibrator.web.wire.documents import sweep_document
from calibrator.web.wire.sweeps import SweepDocument

HOSTILE = "<script>alert(1)</script>|`x`\n# y"


def document(sweep: SweepRecord | None = None, cap: int | None = 37) -> SweepDocument:
    return sweep_document(sweep or record(), cap=cap)


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
    assert page.addresses == ["#compared"]
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
    assert 'id="no-capacity"' in text
    assert "<svg" not in text


def test_what_differs_is_named_before_it_is_compared() -> None:
    ours = record()
    theirs = replace(ours, sweep_id="older", provenance=replace(ours.provenance, model="other", software="0.0.9"))
    assert [one.name for one in differences(document(ours), document(theirs))] == ["model", "calibrator"]
    assert 'id="differences"' in report(document(ours), "html", document(theirs))
    assert 'id="differences"' not in report(document(ours), "html", document(replace(ours, sweep_id="older")))


def test_levels_of_both_sweeps_stand_in_one_table() -> None:
    ours, theirs = record(levels=(level(8),)), record("older", levels=(level(8), level(16, VerdictKind.EXCEEDED)))
    section = report(document(ours), "html", document(theirs)).split('id="compared"')[1]
    assert re.findall(r'<th scope="row">(\d+)</th>', section) == ["8", "16"]


# ---------------------------------------------------------------------------------------------------------- comparison
@pytest.mark.parametrize(
    ("ours", "theirs", "seen"),
    [
        ((0.30, 0.40), (0.10, 0.20), Change.HIGHER),
        ((0.10, 0.20), (0.30, 0.40), Change.LOWER),
        ((0.10, 0.30), (0.30, 0.40), Change.WITHIN),  # they meet in a point
        ((0.30, None), (0.10, 0.20), Change.HIGHER),  # whatever the upper bound is
        ((0.10, None), (0.30, 0.40), Change.UNKNOWN),
        (None, (0.30, 0.40), Change.UNKNOWN),
    ],
)
def test_a_difference_counts_only_where_the_intervals_do_not_meet(
    ours: tuple[float, float | None] | None, theirs: tuple[float, float | None] | None, seen: Change
) -> None:
    assert change(ours, theirs) is seen


@pytest.mark.parametrize(
    ("theirs", "expected", "figures"),
    [
        (Capacity(50, 46, 60), Change.LOWER, ["41", "38", "44", "50", "46", "60"]),
        (Capacity(30, 25, 37), Change.HIGHER, ["41", "38", "44", "30", "25", "37"]),
        (Capacity(46, 44, 50), Change.WITHIN, ["41", "38", "44", "46", "44", "50"]),
        (None, Change.UNKNOWN, []),
    ],
)
def test_a_change_of_the_capacity_is_the_first_message(
    theirs: Capacity | None, expected: Change, figures: list[str]
) -> None:
    found = compare(document(), document(record("older", capacity=theirs)))
    assert found.capacity is expected
    assert re.findall(r"\d+", found.messages[0]) == figures
    for kind in ("html", "md"):
        assert found.messages[0] in report(document(), kind, found.other).replace("\\", "")


def test_levels_are_told_apart_by_the_intervals_of_their_tails() -> None:
    def slower(concurrency: int) -> LevelReport:
        tail = QuantileEstimate(9.0, 8.0, 10.0)
        return replace(level(concurrency), ttft=replace(latency(), p99=tail))

    def usual(concurrency: int) -> LevelReport:
        return replace(level(concurrency), ttft=replace(latency(), p99=QuantileEstimate(0.3, 0.2, 0.4)))

    ours, theirs = record(levels=(usual(8), slower(16))), record("older", levels=(usual(8), usual(16), usual(32)))
    found = compare(document(ours), document(theirs))
    assert re.findall(r"\d+", found.messages[1]) == ["99", "16", "8"]
    assert [pair.changes[0] for pair in found.pairs] == [Change.WITHIN, Change.HIGHER, Change.UNKNOWN]


def test_the_command_that_verifies_it_is_one_that_the_program_takes() -> None:
    words = shlex.split(verification(document()))
    assert words[:2] == ["calibrator", "sweep"]
    shown = CliRunner().invoke(app, ["sweep", "--help"], env={"COLUMNS": "200"}).output
    assert all(word in shown for word in words if word.startswith("--"))
    assert words[words.index("--levels") + 1] == "32,44"
    assert words[words.index("--objective") + 1] == str(document().provenance.objectives[0])


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


def test_the_confidence_band_spans_neighbours_whose_interval_is_bounded() -> None:
    known = [Point(level, 0.2, 0.1, 0.3) for level in (1, 2, 4)]
    parts = _parsed(Chart("t", "s", [Line("p99", "p99", [*known, Point(8, 0.3, 0.2, None), Point(16, 0.3, 0.2, 0.4)])]))
    (area,) = [path for path in parts.iter("path") if path.attrib["class"] == "area p99"]
    assert area.attrib["d"].count("L") == 2 * len(known) - 1
    bars = [path for path in parts.iter("path") if path.attrib["class"] == "interval p99"]
    assert len(bars) == 4, "one where a bound is not known would say that it is"


def test_the_sla_the_capacity_and_the_knee_are_named_in_the_picture() -> None:
    points = [Point(2.0**k, 100.0) for k in range(6)]
    texts = {
        text.text
        for text in _parsed(Chart("t", "ms", [Line("P99", "p99", points)], 300.0, (8, 12), 10, 4)).iter("text")
    }
    assert {"SLA 300", "capacity 10", "knee 4", "P99"} <= texts


def test_names_of_marks_that_stand_close_do_not_run_into_each_other() -> None:
    points = [Point(2.0**k, 100.0) for k in range(6)]
    for mark, knee, anchors in ((5, 4, ["end", "start"]), (4, 5, ["end", "start"]), (30, 2, ["middle", "middle"])):
        root = _parsed(Chart("t", "ms", [Line("P99", "p99", points)], mark=mark, knee=knee))
        names = [text for text in root.iter("text") if re.match("knee|capacity", text.text or "")]
        assert [text.attrib["text-anchor"] for text in names] == anchors


def test_a_picture_of_its_own_carries_its_style() -> None:
    picture = standalone(Chart("t", "s", [Line("p99", "p99", [Point(1, 0.1), Point(2, 0.2)])]), STYLE)
    root = ET.fromstring(picture)  # noqa: S314 - our own picture
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.findtext("{http://www.w3.org/2000/svg}style") == STYLE


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
    source = _written(tmp_path, sweep_document(record(), cap=37).model_dump_json())
    made = tmp_path / "report.html"
    assert CliRunner().invoke(app, ["report", source, "--to", str(made)]).exit_code == 0
    assert made.read_text() == report(document(), "html")
    printed = CliRunner().invoke(app, ["report", source, "--format", "json"])
    assert SweepDocument.model_validate_json(printed.stdout) == document()


@pytest.mark.parametrize(
    ("text", "more", "code", "says"),
    [
        ("{}", [], 2, "is not a sweep (sweep_id"),
        ("no json", [], 2, "is not a sweep"),
        (None, [], 2, "cannot be read"),
        ("{}", ["--format", "pdf"], 2, "not a report format"),
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

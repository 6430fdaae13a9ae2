"""The pictures of the documentation are ours, small, and what the code draws today."""

from __future__ import annotations

import struct
from xml.etree import ElementTree as ET

import pytest
from generate_pictures import PICTURES, SIZE, curve

from calibrator.web.report.report import STYLE

SVG = "{http://www.w3.org/2000/svg}"
MOST_BYTES = 250_000


def test_the_curve_wears_the_style_of_the_report_and_shows_what_the_readme_says() -> None:
    root = ET.parse(PICTURES / "curve.svg").getroot()  # noqa: S314 - our own picture
    assert root.findtext(f"{SVG}style") == STYLE, "make pictures"
    texts = {text.text for text in root.iter(f"{SVG}text")}
    assert {"SLA 300", "capacity 35", "P50", "P99"} <= texts


def test_the_page_is_a_picture_of_its_window_and_small() -> None:
    picture = (PICTURES / "page.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">II", picture[16:24]) == (SIZE["width"], SIZE["height"])
    assert len(picture) <= MOST_BYTES


@pytest.mark.long
def test_the_curve_is_what_the_code_draws() -> None:
    assert (PICTURES / "curve.svg").read_text() == curve(), "make pictures"

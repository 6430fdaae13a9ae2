"""The generated parts of the README: `python -m support.readme` writes them, tests/test_readme.py compares them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from calibrator.settings.reference import reference_markdown as settings_markdown
from calibrator.web.metrics import reference_markdown as metrics_markdown

README = Path(__file__).resolve().parents[2] / "README.md"
PARTS: dict[str, Callable[[], str]] = {"settings": settings_markdown, "metrics": metrics_markdown}


def generated(text: str) -> str:
    """`text` with every generated part made anew."""

    def fill(match: re.Match[str]) -> str:
        return f"<!-- generated: {match[1]} -->\n{PARTS[match[1]]().strip()}\n<!-- end -->"

    return re.sub(r"<!-- generated: (\w+) -->\n.*?<!-- end -->", fill, text, flags=re.DOTALL)


if __name__ == "__main__":
    README.write_text(generated(README.read_text()))

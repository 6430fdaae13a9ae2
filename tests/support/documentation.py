"""The fenced blocks of every Markdown page, and what each of them needs in order to be run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from generate_docs import ROOT

PAGES = tuple(
    page
    for pattern in ("*.md", "calibrator/*.md", "deploy/**/*.md", "helm/**/*.md")
    for page in sorted(ROOT.glob(pattern))
)
BLOCK = re.compile(
    r"(?:^<!-- no-run: (?P<reason>[^>]*?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True, slots=True)
class Block:
    """`language` as after the fence; `reason`: why it is not run, None if it is."""

    page: Path
    line: int
    language: str
    text: str
    reason: str | None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def commands(self) -> str:
        """Of a console session: what follows the prompt."""
        if self.language != "console":
            return self.text
        return "\n".join(line[2:] for line in self.text.splitlines() if line.startswith("$ "))


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("language")) + 1
        yield Block(page, line, match["language"], match["text"], match["reason"])


EVERY_BLOCK = tuple(block for page in PAGES for block in blocks(page))

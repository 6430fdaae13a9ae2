"""Which prompt prefixes the engine remembers: least recently used blocks of a fixed number of tokens.

A block's hash covers everything before it, so equal hashes mean equal prefixes (the layout of vLLM's automatic prefix
caching). A hit is counted in whole blocks from the prompt's start.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

BLOCK_TOKENS = 16


def block_hashes(words: Sequence[str]) -> tuple[int, ...]:
    """One chained hash per full block."""
    hashes: list[int] = []
    before = 0
    for start in range(0, len(words) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        before = hash((before, *words[start : start + BLOCK_TOKENS]))
        hashes.append(before)
    return tuple(hashes)


@dataclass(slots=True)
class PrefixCache:
    """0 tokens: off."""

    capacity_tokens: int
    queries: int = 0  # tokens asked for, as vLLM counts them
    hits: int = 0
    _blocks: OrderedDict[int, None] = field(default_factory=OrderedDict)

    def match(self, blocks: Sequence[int]) -> int:
        """Tokens of the longest remembered prefix."""
        known = 0
        for block in blocks:
            if block not in self._blocks:
                break
            known += 1
        self._touch(blocks[:known])
        self.queries += len(blocks) * BLOCK_TOKENS
        self.hits += known * BLOCK_TOKENS
        return known * BLOCK_TOKENS

    def insert(self, blocks: Sequence[int]) -> None:
        self._touch(blocks)
        while len(self._blocks) * BLOCK_TOKENS > self.capacity_tokens:
            self._blocks.popitem(last=False)

    def _touch(self, blocks: Sequence[int]) -> None:
        """From the end: a prefix is forgotten tail first, since a tail without its head is of no use."""
        for block in reversed(blocks):
            self._blocks[block] = None
            self._blocks.move_to_end(block)

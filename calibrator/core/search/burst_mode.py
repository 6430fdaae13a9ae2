"""What a burst after the search is for. Alone here, so that `--help` does not import what judges one."""

from __future__ import annotations

from enum import StrEnum


class BurstMode(StrEnum):
    OFF = "off"
    REPORT = "report"
    ENFORCE = "enforce"

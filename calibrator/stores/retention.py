"""What a store forgets, and how a sweep reads whose process was killed. Shared by every implementation.

Per backend the newest `keep` sweeps that calibrated stay, and twice as many that did not: a failure is looked into
later than a success, and a run of failures must not push out the sweep behind the published cap. Running sweeps stay.
"""

from __future__ import annotations

from dataclasses import replace

from calibrator.core.records.sweep import SweepOutcome, SweepRecord

FAILED_FACTOR = 2  # failed sweeps are kept this many times as long as good ones


def interrupted(record: SweepRecord, now: float) -> SweepRecord:
    """The record of a sweep whose process ended without reporting it; its measured levels stay."""
    return replace(
        record,
        outcome=SweepOutcome.INTERRUPTED,
        ended_at=now,
        reason="The program stopped while this sweep ran; found unfinished at the next start.",
    )

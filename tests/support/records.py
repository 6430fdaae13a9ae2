"""Values that are full on purpose: every optional field of a stored document is set somewhere."""

from __future__ import annotations

import math
from dataclasses import replace

from calibrator.core.publish.snapshot import Rates, Recommendation, State
from calibrator.core.records.history import Audit, Capacity, Evidence, History, RampCount, Stage
from calibrator.core.records.objective import parse_objective
from calibrator.core.records.sample import Label, Phase, Sample
from calibrator.core.records.server_load import ServerLoadPeak
from calibrator.core.records.sweep import (
    BurstReport,
    ClassAchieved,
    Grade,
    LevelReport,
    ObjectiveVerdict,
    Provenance,
    SweepOutcome,
    SweepRecord,
    Verdict,
    VerdictKind,
)
from calibrator.core.stats.quantile import LatencySummary, QuantileEstimate

OBJECTIVE = parse_objective("ttft p99 <= 500ms for prompts <= 1024 tokens")

ANSWER = Sample(  # a probe that went well
    request_id=7,
    label=Label(3, Phase.COUNTED),
    class_name="chat",
    stream=True,
    wanted_prompt_tokens=256,
    started_s=10.00000049,
    duration_s=1.5,
    ttft_s=0.25,
    ttfc_s=0.3,
    last_token_s=1.25,
    token_events=60,
    prompt_tokens=257,
    completion_tokens=64,
    cached_tokens=128,
    connect_s=0.001,
    send_delay_s=0.0001,
    wanted_output_tokens=64,
)


def recommendation(backend: str = "chat", version: int = 1, cap: int = 32) -> Recommendation:
    return Recommendation(
        backend=backend,
        version=version,
        cap=cap,
        replica_cap=cap,
        state=State.CALIBRATED,
        grade=Grade.CERTIFIED,
        capacity=Capacity(36, 33, 41),
        reason="certified at 36",
        published_at=1000.0 + version,
        measured_at=999.5,
        valid_until=5000.0,
        sweep_id="s1",
        rates=Rates(12.5, 3000.0, 800.0),
        max_queue_wait_s=0.1,
        warnings=("suspect_stub",),
    )


def sweep(
    sweep_id: str = "s1",
    backend: str = "chat",
    started_at: float = 100.0,
    outcome: SweepOutcome | None = SweepOutcome.CALIBRATED,
) -> SweepRecord:
    ended = None if outcome is None else started_at + 60.0
    return SweepRecord(
        sweep_id=sweep_id,
        backend=backend,
        mode="search",
        started_at=started_at,
        ended_at=ended,
        outcome=outcome,
        grade=Grade.CERTIFIED,
        capacity=Capacity(36, 33, 41),
        reason="next level is refuted",
        requests=1500,
        duration_s=60.0,
        overload_s=1.25,
        prompt_tokens=384_000,
        output_tokens=96_000,
        levels=(_level(),),
        warnings=("suspect_stub",),
        provenance=Provenance(
            backend,
            "http://h/v1",
            "m",
            "vllm",
            "100% 256+64 tokens",
            257.5,
            None,
            7,
            "0.1.0",
            0.25,
            (ClassAchieved("default", 900, 256.0, 257.5, None, None),),
        ),
        history=History((OBJECTIVE,), (_stage(),)),
        remedy="",
        outcomes=(("ok", 1490), ("violation", 10)),
        burst=BurstReport(36, 4, 144, 3, "ttft", _level().ttft, None),
    )


def running(sweep_id: str, backend: str = "chat", started_at: float = 100.0) -> SweepRecord:
    """As `SweepListener.partial` hands it over."""
    return replace(sweep(sweep_id, backend, started_at, None), grade=None, capacity=None)


def _stage() -> Stage:
    return Stage(
        level=32,
        started_at_s=1.5,
        ended_at_s=9.25,
        residence_s=0.75,
        evidence=(Evidence("0010", (3.125,)),),
        ramp=(RampCount(12, 1),),
        ramp_failed=False,
        requests=60,
        tail_ratio=(None,),
        audit=Audit(0.001, 0.002, 0.5, 32.0, 31.9, ("generator saturated",)),
        server=ServerLoadPeak(3, 32.0, 1.0, 0.5, 2.0),
    )


def _level() -> LevelReport:
    quantile = QuantileEstimate(0.1 + 0.2, 0.29, math.inf)  # a sum that does not round, and an infinity
    summary = LatencySummary(4, quantile, quantile, None)
    verdict = ObjectiveVerdict(str(OBJECTIVE), VerdictKind.WITHIN, 4, 2.0, 1, 0.0, 0.6, "LLR")
    return LevelReport(
        concurrency=32,
        achieved_concurrency=31.9,
        n=4,
        exceedances=1,
        requests=60,
        verdict=Verdict(VerdictKind.WITHIN, ("LLR",), (verdict,)),
        ttft=summary,
        ttfc=summary,
        itl=summary,
        tpot=summary,
        e2e=summary,
        requests_per_second=8.0,
        prompt_tokens_per_second=2048.0,
        output_tokens_per_second=512.0,
        goodput_per_second=7.5,
        errors=(("status", 2),),
    )

"""`triggers:` and `mirror:` become policies; what cannot be meant is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from calibrator.core.admission.triggers import COOL_DOWN_S, TriggerKind, TriggerPolicy
from calibrator.core.workload.mirror import MirrorPolicy, MirrorWeight
from calibrator.errors import ConfigurationError
from calibrator.ports.sweeps import BackendPlan
from calibrator.settings import backend_plans, load_settings, redacted

BACKEND = {"url": "http://h/v1", "model": "m", "objectives": ["ttft p99 <= 500ms"], "fallback_cap": 8}


def planned(tmp_path: Path, **more: Any) -> BackendPlan:
    """Of a file that, printed and read again, says the same."""
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({"backends": {"chat": {**BACKEND, **more}}}))
    settings = load_settings(path, {})
    path.write_text(yaml.safe_dump(redacted(settings)))
    assert load_settings(path, {}) == settings
    (plan,) = backend_plans(settings, {})
    return plan


def test_without_a_word_every_trigger_is_on_and_nothing_is_mirrored(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    assert plan.triggers == TriggerPolicy()
    assert plan.mirror is None


def test_triggers_can_be_off_or_slower(tmp_path: Path) -> None:
    policy = planned(tmp_path, triggers={"off": ["drift"], "restart": "2h", "min_uptime": "1m", "rest": "5m"}).triggers
    assert policy.cool_down_s == {
        **{kind: cool_down_s for kind, cool_down_s in COOL_DOWN_S.items() if kind is not TriggerKind.DRIFT},
        TriggerKind.RESTART: 7200.0,
    }
    assert (policy.min_uptime_s, policy.rest_s) == (60.0, 300.0)


@pytest.mark.parametrize(
    ("workload", "policy", "reuse"),
    [
        ({"mirror": {}}, MirrorPolicy(), 0.0),
        ({"mirror": {"over": "6h", "weight": "peak"}}, MirrorPolicy(over_s=21_600.0, weight=MirrorWeight.PEAK), 0.0),
        ({"mirror": {}, "prefix_reuse": "mirror"}, MirrorPolicy(), 0.0),
        ({"mirror": {}, "prefix_reuse": 0.4}, MirrorPolicy(prefix_reuse=False), 0.4),
        ({"prefix_reuse": "mirror"}, MirrorPolicy(lengths=False), 0.0),
        ({"prefix_reuse": 0.4}, None, 0.4),
    ],
)
def test_what_is_mirrored(tmp_path: Path, workload: dict[str, Any], policy: MirrorPolicy | None, reuse: float) -> None:
    plan = planned(tmp_path, workload=workload)
    assert plan.mirror == policy
    assert plan.workload.prefix_reuse_ratio == reuse


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"triggers": {"off": ["sunshine"]}}, "triggers.off"),
        ({"triggers": {"rest": 5}}, "triggers.rest"),
        ({"triggers": {"hit_ratio": 2}}, "triggers.hit_ratio"),
        ({"workload": {"prefix_reuse": "live"}}, "Give 0 to 0.95, or mirror."),
        ({"workload": {"prefix_reuse": True}}, "workload.prefix_reuse"),
        ({"workload": {"mirror": {"weight": "noon"}}}, "workload.mirror.weight"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, more: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words.replace(".", r"\.")):
        planned(tmp_path, **more)

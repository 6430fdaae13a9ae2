"""A setting that nobody gave means what the policy behind it means by itself."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from calibrator.cli.options import SweepOptions
from calibrator.cli.sweep import order_from
from calibrator.core.admission.admission import SafetyLimits
from calibrator.core.admission.schedule import Schedule
from calibrator.core.admission.triggers import TriggerPolicy
from calibrator.core.live.change_test import GuardPolicy
from calibrator.core.publish.fleet import ReplicaPlan
from calibrator.core.publish.lease import LeasePolicy
from calibrator.core.publish.recommendation import PublishPolicy
from calibrator.core.records.history import Bounds
from calibrator.core.workload.classes import Workload
from calibrator.core.workload.mirror import MirrorPolicy
from calibrator.ports.load import LoadPlan
from calibrator.ports.store import Retention
from calibrator.settings import backend_plans, parse_settings, redacted
from calibrator.settings.defaults import default_of
from calibrator.settings.sections.mirror import MirrorSettings

BACKEND = {"url": "http://host:8000/v1", "model": "m", "objectives": ["ttft p99 <= 500ms"], "fallback_cap": 8}
SETTINGS = parse_settings({"backends": {"chat": BACKEND}})
STORE = SETTINGS.store
(PLAN,) = backend_plans(SETTINGS, {})
POLICIES: tuple[tuple[Any, Any], ...] = (
    (PLAN.bounds, Bounds()),
    (PLAN.workload, Workload()),
    (PLAN.schedule, Schedule()),
    (PLAN.policy, PublishPolicy(fallback_cap=8)),
    (PLAN.limits, SafetyLimits()),
    (PLAN.triggers, TriggerPolicy()),
    (PLAN.guard, GuardPolicy()),
    (PLAN.replicas, ReplicaPlan()),
    (MirrorSettings().value(prefix_reuse=True), MirrorPolicy()),
    (SETTINGS.load.value(), LoadPlan()),
    (LeasePolicy(STORE.lease_s), LeasePolicy()),
    (Retention(STORE.keep_sweeps, STORE.keep_recommendations, STORE.keep_samples), Retention()),
)


@pytest.mark.parametrize(("from_settings", "by_itself"), POLICIES, ids=lambda value: type(value).__name__)
def test_settings_and_policies_agree(from_settings: object, by_itself: object) -> None:
    assert from_settings == by_itself


def test_one_sweep_by_hand_is_like_one_of_the_service() -> None:
    order = order_from(SweepOptions(url=BACKEND["url"], model="m", objectives=["ttft p99 <= 500ms"]))
    assert (order.bounds, order.workload, order.burst, order.target, order.objectives) == (
        PLAN.bounds, PLAN.workload, PLAN.burst, PLAN.target, PLAN.objectives,
    )  # fmt: skip


def test_every_default_would_be_accepted_if_it_stood_in_the_file() -> None:
    written = yaml.safe_load(yaml.safe_dump(redacted(SETTINGS)))
    assert parse_settings(written) == SETTINGS


@pytest.mark.parametrize("name", ["fallback_cap", "no_such_field"])
def test_a_default_that_is_not_there_is_a_mistake_of_the_program(name: str) -> None:
    with pytest.raises(TypeError, match=name):
        default_of(PublishPolicy, name)

"""Where the replicas of a backend are, as a configuration says it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from calibrator.core.publish.fleet import Balancing, DnsPlan, ReplicaPlan
from calibrator.errors import ConfigurationError
from calibrator.ports.sweeps import BackendPlan
from calibrator.settings import backend_plans, load_settings

CHAT: dict[str, Any] = {"model": "m", "objectives": ["ttft p99 <= 500ms"], "fallback_cap": 8}
URLS = ["http://a:8000/v1", "http://b:8000/v1"]


def plans(folder: Path, **backends: dict[str, Any]) -> tuple[BackendPlan, ...]:
    path = folder / "calibrator.yaml"
    path.write_text(yaml.safe_dump({"backends": copy.deepcopy(backends)}), encoding="utf-8")
    return backend_plans(load_settings(path, {}), {})


def refusal(folder: Path, **backends: dict[str, Any]) -> str:
    with pytest.raises(ConfigurationError) as caught:
        plans(folder, **backends)
    return str(caught.value)


def test_a_single_url_is_a_fleet_of_one(tmp_path: Path) -> None:
    (plan,) = plans(tmp_path, chat={**CHAT, "url": URLS[0]})
    assert plan.replicas == ReplicaPlan()
    assert plan.replicas.balancing is Balancing.RANDOM


def test_a_list_of_urls_stands_for_url(tmp_path: Path) -> None:
    (plan,) = plans(tmp_path, chat={**CHAT, "replicas": {"urls": URLS, "weight": 2}})
    assert (plan.replicas.urls, plan.target.url, plan.replicas.weight) == (tuple(URLS), URLS[0], 2.0)


def test_a_name_stands_for_url_or_takes_scheme_and_path_from_it(tmp_path: Path) -> None:
    dns = {"name": "engine.models", "port": 8000}
    (plan,) = plans(tmp_path, chat={**CHAT, "replicas": {"dns": dns}})
    assert plan.target.url == "http://engine.models:8000/v1"
    assert plan.replicas.dns == DnsPlan("engine.models", 8000)
    (plan,) = plans(tmp_path, chat={**CHAT, "url": "https://x/api/v1", "replicas": {"dns": dns}})
    assert plan.target.url == "https://x/api/v1"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({}, "url: is missing"),
        ({"url": URLS[1], "replicas": {"urls": URLS}}, "url: cannot be combined with replicas.urls"),
        ({"replicas": {"urls": URLS, "dns": {"name": "x", "port": 1}}}, "cannot be combined with dns"),
        ({"replicas": {"urls": [URLS[0], URLS[0]]}}, "replicas.urls: lists a replica twice"),
        ({"replicas": {"urls": URLS, "measure_on": URLS[1:]}}, "measure_on: lists a replica in rotation"),
        ({"replicas": {"dns": {"name": "engine.models"}}}, "dns.port: is missing"),
        ({"replicas": {"dns": {"name": "http://x/", "port": 1}}}, "is not a host name"),
        ({"replicas": {"dns": "engine.models"}}, "url"),
        ({"replicas": {"urls": "http://a:8000/v1"}}, "url"),
        ({"url": URLS[0], "replicas": {"balancing": "fair"}}, "balancing"),
        ({"url": URLS[0], "replicas": {"weight": 0}}, "weight"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, more: dict[str, Any], words: str) -> None:
    assert words in refusal(tmp_path, chat={**CHAT, **more})


def test_two_backends_with_a_replica_in_common_share_an_engine(tmp_path: Path) -> None:
    both = {
        "chat": {**CHAT, "replicas": {"urls": URLS}},
        "lora": {**CHAT, "url": URLS[1]},
    }
    assert "'lora' and 'chat' have the same URL but are not in one engine group" in refusal(tmp_path, **both)
    grouped = {name: {**backend, "engine_group": "gpu"} for name, backend in both.items()}
    assert len(plans(tmp_path, **grouped)) == 2
    grouped["lora"]["objectives"] = ["ttft p99 <= 300ms"]
    assert "backends.lora.objectives: 'lora' and 'chat'" in refusal(tmp_path, **grouped)

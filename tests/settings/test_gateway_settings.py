"""Which gateways may ask, and for what."""

from __future__ import annotations

from typing import Any

import pytest

from calibrator.errors import ConfigurationError
from calibrator.settings import parse_settings
from calibrator.settings.tree import Settings

BACKEND = {"url": "http://engine:8000/v1", "model": "m", "objectives": ["ttft p99 <= 500ms"], "fallback_cap": 8}


def settings(**gateways: Any) -> Settings:
    return parse_settings({"backends": {"chat": BACKEND}, "gateways": gateways})


def test_clusters_are_named_like_backends_unless_mapped() -> None:
    assert settings().gateways.envoy.value(["chat"]) == {"chat": "chat"}
    mapped = {"prod.llm-70b/v1": "chat", "rule/1": "chat"}
    assert settings(envoy={"clusters": mapped}).gateways.envoy.value(["chat"]) == mapped


def test_agent_checks_are_off_unless_a_port_is_given() -> None:
    assert settings().gateways.haproxy.port is None
    assert settings(haproxy={"port": 8301}).gateways.haproxy.port == 8301


@pytest.mark.parametrize(
    ("gateways", "message"),
    [
        (
            {"envoy": {"clusters": {"llm": "chaat"}}},
            "gateways.envoy.clusters.llm: 'chaat' is not a backend. Give one of",
        ),
        ({"envoy": {"clusters": {"": "chat"}}}, "gateways.envoy.clusters"),
        ({"haproxy": {"port": 70_000}}, "gateways.haproxy.port"),
        ({"haproxy": {"prot": 1}}, "Did you mean 'port'?"),
    ],
)
def test_what_does_not_fit_is_named(gateways: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        settings(**gateways)
    assert message in str(refused.value)

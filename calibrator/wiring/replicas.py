"""From a plan to what finds its replicas."""

from __future__ import annotations

from calibrator.discovery.dns import DnsDiscovery
from calibrator.discovery.static import StaticDiscovery
from calibrator.ports.sweeps import BackendPlan
from calibrator.ports.telemetry import Discovery


def discovery(plan: BackendPlan) -> Discovery:
    if plan.replicas.dns is not None:
        return DnsDiscovery(plan.replicas.dns, plan.target.url)
    return StaticDiscovery(plan.replicas.urls or (plan.target.url,))

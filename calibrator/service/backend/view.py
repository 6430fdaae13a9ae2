"""The projection of a backend's state into the snapshot."""

from __future__ import annotations

from dataclasses import replace

from calibrator.core.publish.override import overlaid
from calibrator.core.publish.recommendation import PublishPolicy, fallback
from calibrator.core.publish.snapshot import BackendView, CapPoint, Counters, Health, Override, Recommendation
from calibrator.core.records.harm import AbortReason
from calibrator.core.records.sample import RequestOutcome
from calibrator.core.records.sweep import SweepOutcome
from calibrator.service.backend.state import BackendState, SweepTotals

RESERVED_STEPS = 8


def backend_view(
    state: BackendState,
    underlying: Recommendation,
    override: Override | None = None,
    trend: tuple[CapPoint, ...] = (),
    store_problem: str = "",
) -> BackendView:
    """`underlying`: what is published without the override."""
    plan, fleet, primary = state.plan, state.fleet, state.group_primary
    published = underlying if override is None else overlaid(underlying, override, plan.policy)
    refusal, limits, requested = fleet.refusal, plan.limits, primary.slot.requested
    return BackendView(
        name=plan.name,
        model=plan.target.model,
        objectives=tuple(str(objective) for objective in plan.objectives),
        recommendation=published,
        health=Health.ERROR if refusal else Health.OBSERVE if limits.observe else state.results.health,
        health_reason=refusal or state.results.health_reason,
        counters=_counters(state.results.totals, state.gateways.polls),
        fallback_cap=plan.policy.fallback_cap,
        up=fleet.up,
        engine=fleet.engine,
        ready_replicas=fleet.ready_replicas,
        organic_in_flight=fleet.organic_in_flight,
        probe_in_flight=state.probes_in_flight,
        last_sweep=primary.results.last,
        last_sweep_at=dict(primary.results.last_at),
        next_sweep_at=None if primary.is_swept else primary.slot.due_at,
        progress=primary.progress,
        override=override,
        underlying=None if override is None else underlying,
        gateway_clients=state.gateways.clients,
        gateway_clients_over_cap=state.gateways.clients_over_cap,
        lease_held=state.lease.is_held,
        store_problem=store_problem,
        # At most the swept replica's part of the cap: beyond it, users of the others would give way for nothing.
        reserved_for_probes=in_steps(state.reserved_for_probes, -(-published.cap // max(1, fleet.ready_replicas))),
        measured_by=primary.plan.name,
        replicas=fleet.views(),
        discovery_problem=fleet.problem,
        metrics_problem=fleet.metrics_problem,
        traffic_note=state.triggers.unlike,
        in_flight_peak=fleet.in_flight_peak,
        headroom_min_ratio=fleet.headroom_min_ratio,
        guard=state.guard.view(),
        queued="" if requested is None else requested.reason,
        deferred=None if primary.slot.running is not None else primary.admission.deferred,
        trend=trend,
        shadow=_shadow(plan.name, plan.policy, published) if limits.shadow else None,
    )


def _counters(totals: SweepTotals, polls: int) -> Counters:
    return Counters(
        sweeps={outcome.value: totals.sweeps[outcome.value] for outcome in SweepOutcome},
        probe_requests={outcome.value: totals.requests[outcome.value] for outcome in RequestOutcome},
        probe_tokens={kind: totals.tokens[kind] for kind in ("prompt", "output")},
        probe_overload_s=totals.overload_s,
        gateway_polls=polls,
        sweep_aborts={reason.value: totals.aborts[reason.value] for reason in AbortReason},
        live_exceedances=totals.live_exceedances,
    )


def _shadow(name: str, policy: PublishPolicy, published: Recommendation) -> Recommendation:
    """What gateways get while nothing that was measured is enforced: the same for as long as the fallback is."""
    resting = fallback(name, policy, published.published_at, published.version)
    return replace(resting, reason="publish: shadow; gateways get the configured fallback")


def in_steps(probes: int, part: int) -> int:
    """What probes take of one replica's part of the cap, rounded up to an eighth of it.

    Their number moves with each scrape; a cap that moved with it would be news to every gateway once a second, and some
    start their count again with every change (Traefik).
    """
    step = max(1, part // RESERVED_STEPS)
    return min(part, -(-probes // step) * step)

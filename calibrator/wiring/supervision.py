"""The supervisor and all its parts: the one place that knows which part is given which."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

from calibrator.core.publish.lease import SOLE, LeasePolicy
from calibrator.ports.clock import Clock
from calibrator.ports.store import Leases, Store
from calibrator.ports.sweeps import BackendPlan, SweepRunner, Target
from calibrator.ports.telemetry import Discovery, Telemetry
from calibrator.service.backend.checkpoints import Checkpoints
from calibrator.service.backend.fleet import Fleet
from calibrator.service.backend.state import BackendState
from calibrator.service.fleet_watch import FleetWatch
from calibrator.service.publishing.joint_shares import JointShares
from calibrator.service.publishing.leases import LeaseManager
from calibrator.service.publishing.overrides import OverrideKeeper
from calibrator.service.publishing.publisher import Publisher
from calibrator.service.publishing.shares import ShareKeeper, Shares
from calibrator.service.publishing.store_health import StoreHealth
from calibrator.service.replication import Replication
from calibrator.service.supervisor import Supervisor
from calibrator.service.sweep_scheduler import SweepScheduler


def make_supervisor(
    plans: Sequence[BackendPlan],
    *,
    runner: SweepRunner,
    store: Store,
    leases: Leases,
    holder: str,
    lease: LeasePolicy = SOLE,
    clock: Clock,
    telemetry: Callable[[Target], Telemetry],
    discovery: Callable[[BackendPlan], Discovery],
    max_parallel: int,
    draws: random.Random,
    new_id: Callable[[], str],
) -> Supervisor:
    """`holder`: this instance's name."""
    health = StoreHealth()
    states = _states([(plan, Fleet(plan, discovery(plan), telemetry, clock)) for plan in plans])
    groups = {plan.name: plan.engine_group for plan in plans}
    manager = LeaseManager(groups, leases, holder, policy=lease, clock=clock, health=health)
    publisher = Publisher(store, clock, manager, health)
    scheduler = SweepScheduler(states, runner, publisher, manager, clock, max_parallel, draws, new_id)
    shares: Shares = (
        ShareKeeper(store, clock, health) if lease.is_sole else JointShares(store, clock, holder, manager, health)
    )
    overrides = OverrideKeeper(store, clock, health, is_sole=lease.is_sole)
    checkpoints = Checkpoints(store, clock, health)
    return Supervisor(
        states=states,
        scheduler=scheduler,
        fleet_watch=FleetWatch(states, scheduler, publisher, manager, clock),
        publisher=publisher,
        shares=shares,
        overrides=overrides,
        checkpoints=checkpoints,
        leases=manager,
        replication=Replication(
            states,
            store,
            clock,
            leases=manager,
            publisher=publisher,
            scheduler=scheduler,
            overrides=overrides,
            checkpoints=checkpoints,
            health=health,
        ),
        health=health,
        clock=clock,
        new_id=new_id,
    )  # fmt: skip


def _states(fleets: Sequence[tuple[BackendPlan, Fleet]]) -> Mapping[str, BackendState]:
    """Backends of one group at the same addresses share the sweeps of the first, and its capacity by weight.

    At other addresses of the group there are other engines, which only must not be swept at the same time.
    """
    weights = dict[object, float]()
    for plan, _ in fleets:
        weights[_engines(plan)] = weights.get(_engines(plan), 0.0) + plan.replicas.weight
    states, primaries = dict[str, BackendState](), dict[object, BackendState]()
    for plan, fleet in fleets:
        engines = _engines(plan)
        share = plan.replicas.weight / weights[engines]
        states[plan.name] = BackendState.of(plan, fleet, primaries.get(engines), share)
        primaries.setdefault(engines, states[plan.name])
    return states


def _engines(plan: BackendPlan) -> object:
    """The same for backends on the same engines."""
    return plan.engine_group, plan.replicas.urls or plan.target.url, plan.replicas.dns

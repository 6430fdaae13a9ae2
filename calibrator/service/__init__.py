"""Orchestration: awaits what `core` decided, through the contracts in `ports`.

Does:      one tick for all backends; starts, runs and ends sweeps; publishes; follows the other instances.
Comes in:  plans of backends, ports (wiring builds them), what operators and gateways ask.
Goes out:  recommendations, shares, the snapshot.
Imports:   `ports`, `core`, `errors`; no adapter.

Upper to lower: supervisor > replication | fleet_watch > sweep_scheduler > backend > publishing. `sweep` runs in a
process of its own and sees nothing else of `service`.
"""

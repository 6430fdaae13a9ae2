"""From a capacity to what is served.

Does:      the recommendation and its states, cuts by the guard, overrides, replicas and their balance, leases,
           checkpoints, and the snapshot that all projections read.
Comes in:  ended sweeps, guard alarms, discovered replicas, an operator's overrides.
Goes out:  `Recommendation` (never 0, negative or null) and `Snapshot`.
Imports:   `core.live`, `core.admission` and what they import.
"""

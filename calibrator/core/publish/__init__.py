"""From a capacity to what is served.

Does:      the recommendation and its states, cuts of the guard, pins, replicas and their balance, leases, checkpoints,
           and the snapshot that every projection reads.
Comes in:  ended sweeps, guard alarms, what discovery found, an operator's pins.
Goes out:  `Recommendation` (never 0, negative or null) and `Snapshot`.
Imports:   `core.live`, `core.admission` and what they import.
"""

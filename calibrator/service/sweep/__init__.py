"""One sweep, in a process of its own.

Does:      inspects, runs one stage after the other, steers probes beside users, audits the generator, aborts.
Comes in:  a `SweepOrder`, a load generator, telemetry.
Goes out:  progress and one immutable `SweepRecord`.
Imports:   `ports`, `core`; nothing else of `service` (checked by import-linter).
"""

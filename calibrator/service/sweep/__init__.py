"""One sweep, in a process of its own.

Does:      inspects the backend, runs one stage after the other, adjusts probes to live load, audits the generator,
           aborts.
Comes in:  a `SweepOrder`, a load generator, telemetry.
Goes out:  progress and one immutable `SweepRecord`.
Imports:   `ports`, `core`; nothing else of `service` (checked by import-linter).
"""

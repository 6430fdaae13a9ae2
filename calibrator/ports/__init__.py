"""Every contract between layers, in domain words, a file a topic. Adapters implement them; `service` awaits them.

Does:      protocols and the values that cross them: clock, backend, load, telemetry, sweeps, store, sharing, operator.
Comes in:  nothing: no code runs here.
Goes out:  names for type annotations and frozen values.
Imports:   `core`, `errors`.

House rules: a port is small; nothing here knows a vendor, HTTP, SQL or a file; an adapter translates foreign errors
into `errors`, except a probe's failure, which is data (`core.records.sample.Failure`).
"""

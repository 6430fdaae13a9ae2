"""What users do and feel.

Does:      estimates live load beside probes; ends a sweep that hurts users; watches them between sweeps; judges whether
           the engine's metrics page can be trusted.
Comes in:  scrapes of each replica, our own request counts.
Goes out:  live in flight, abort reasons, guard alarms, disagreement of clocks.
Imports:   `core.search` (the indifference zone), `core.records`, `core.stats`.
"""

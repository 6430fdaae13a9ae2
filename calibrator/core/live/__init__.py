"""What live users do and experience.

Does:      estimates live load while probes run; aborts a sweep that hurts users; watches latency between sweeps; checks
           whether the engine's metrics page can be trusted.
Comes in:  scrapes of each replica, our own request counts.
Goes out:  live requests in flight, abort reasons, guard alarms, disagreeing times to first token.
Imports:   `core.search` (the indifference zone), `core.records`, `core.stats`.
"""

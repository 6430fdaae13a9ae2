"""What probes look like, and what live requests look like.

Does:      draws prompts and output lengths by class or from a trace; mirrors the live mix and detects its drift; tells
           a model from a stub by latency.
Comes in:  configured classes, trace lines, the engine's length histograms.
Goes out:  `Workload`, a mix of live traffic, achieved lengths, warnings.
Imports:   `core.records`, `core.stats`.
"""

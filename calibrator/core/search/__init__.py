"""Which level next, and what the evidence at a level says.

Does:      the verdict of a level, the search policy (ramp, posterior, recalibration), its cost, the burst test.
Comes in:  `History`: all stages of the sweep so far, and what carries over from the previous one.
Goes out:  the next step or a conclusion with capacity, interval and grade.
Imports:   `core.workload`, `core.records`, `core.stats`. Stateless: a stored sweep can be replayed.
"""

"""When a sweep may start.

Does:      windows and intervals, daily budgets, room for probes next to live load, triggers with their cool-downs.
Comes in:  the time, the live load, the cost of recent sweeps, detected changes.
Goes out:  the limits to start with, or a deferral with a reason code and the next possible time.
Imports:   `core.search` (cost), `core.workload` (drift), `core.records`.
"""

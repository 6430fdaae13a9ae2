"""When a sweep may start.

Does:      windows and intervals, budgets of a day, room beside users, triggers with their cool-downs.
Comes in:  the time, the live load, what sweeps cost so far, changes that were seen.
Goes out:  start, or wait with a reason code and a moment to ask again.
Imports:   `core.search` (cost), `core.workload` (drift), `core.records`.
"""

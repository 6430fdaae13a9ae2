"""Load generators: they hold a number of requests in flight and report what was decided about each.

Does:      one closed loop in a process, pools of processes or Ray workers, the sweep's own process and its leash.
Comes in:  how many users to hold, a prompt source, connections.
Goes out:  batches of events with the generator's own error beside them.
Imports:   `ports`, `core`, `errors`; no other adapter.
"""

"""Load generators: hold a number of requests in flight and report what was decided about each.

Does:      one closed loop in a process, pools of processes or Ray workers, and the process that a sweep runs in.
Comes in:  the number of virtual users, a prompt source, connections.
Goes out:  batches of events together with the generator's own error.
Imports:   `ports`, `core`, `errors`; no other adapter.
"""

"""One backend of the service between its sweeps.

Does:      its state, its replicas, the guard over its users, its triggers, admission, checkpoints of what was learnt.
Comes in:  scrapes, ended sweeps, stored checkpoints.
Goes out:  events for the supervisor: a cut, a wanted sweep, a changed fleet.
Imports:   `ports`, `core`; not `service.publishing`.
"""

"""Adapters that say which replicas a backend has.

Does:      static lists and DNS (A, AAAA, SRV).
Comes in:  a `ReplicaPlan`.
Goes out:  the addresses found, or an error that names cause and remedy.
Imports:   `ports`, `core`, `errors`; no other adapter.
"""

"""Adapters that find the replicas of a backend.

Does:      static lists and DNS (A, AAAA, SRV).
Comes in:  a `ReplicaPlan`.
Goes out:  the addresses found, or an error with cause and remedy.
Imports:   `ports`, `core`, `errors`; no other adapter.
"""

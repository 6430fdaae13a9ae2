"""What outlives a restart of the service: sweeps, recommendations, shares, pins, checkpoints.

Does:      SQLite and PostgreSQL behind one port, leases of several instances, migrations.
Comes in:  frozen values of `core`.
Goes out:  the same values; `StoreError` with cause and remedy.
Imports:   `ports`, `core`, `errors`; no other adapter.
"""

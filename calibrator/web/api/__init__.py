"""The JSON interface under `/v1`, beside the cap itself.

Does:      backends, sweeps and their samples, history, events, pins, sessions.
Comes in:  authorised requests.
Goes out:  documents of `web.wire`.
Imports:   `web.poll`, `web.report`, `web.http`, `web.wire`.
"""

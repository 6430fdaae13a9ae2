"""Polling: the cap, and the share of each gateway.

Does:      `GET .../cap` with ETag and long polls, and a fast path around the middleware.
Comes in:  thousands of requests a second.
Goes out:  small cached responses.
Imports:   `web.http`, `web.wire`.
"""

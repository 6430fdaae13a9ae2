"""What gateways poll: the cap and their share of it.

Does:      `GET .../cap` with ETag and long polls, and a fast path around the middleware.
Comes in:  thousands of requests a second.
Goes out:  small prepared answers.
Imports:   `web.http`, `web.wire`.
"""

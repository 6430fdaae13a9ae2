"""`/metrics` from the snapshot.

Does:      every metric family, written as text by hand (a quarter of the library's time), parsed back in tests.
Comes in:  `Snapshot`.
Goes out:  the exposition format.
Imports:   `core`, `ports`; nothing else of `web`.
"""

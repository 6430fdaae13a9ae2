"""Synthetic backends of known capacity, and the search played on them.

Does:      draws backends by family, plays whole sweeps without a clock, compares the result with the truth.
Comes in:  a seed.
Goes out:  the tables of `calibrator simulate`.
Imports:   `core.search` and what it imports.
"""

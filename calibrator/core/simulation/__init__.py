"""Synthetic backends of known capacity, and the search run on them.

Does:      draws backends by family, runs whole sweeps on simulated time, compares the result with the truth.
Comes in:  a seed.
Goes out:  the tables of `calibrator simulate`.
Imports:   `core.search` and what it imports.
"""

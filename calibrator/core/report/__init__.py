"""Interpretation of results.

Does:      the knee, slope and limiting factor of a curve, the formats of numbers and times, trace spans.
Comes in:  `SweepRecord`.
Goes out:  plain values for the web layer, the command line and the tracer.
Imports:   `core.search` and what it imports.
"""

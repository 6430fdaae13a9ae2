"""Reading and rendering of results.

Does:      the curve with its knee and slope, what limits, the JSON documents of a sweep, its trace spans.
Comes in:  `SweepRecord`.
Goes out:  plain values that the web layer, the command line and the tracer project further.
Imports:   `core.search` and what it imports.
"""

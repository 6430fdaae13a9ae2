"""Adapters that read an engine's own metrics, and one that exports traces.

Does:      one scrape of a metrics page, one literal table of engines' names; spans over OTLP.
Comes in:  a `Target`; ended sweeps.
Goes out:  `ServerLoad`, or nothing with the reason in words.
Imports:   `ports`, `core`, `errors`; no other adapter.
"""

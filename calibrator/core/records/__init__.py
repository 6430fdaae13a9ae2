"""What is measured, as values that can be stored, replayed and judged again.

Does:      defines a sample, an objective, a level's evidence, a sweep's record; accumulates one level's events.
Comes in:  ended requests and decided bits from the load generator, scrapes of the engine.
Goes out:  `History` for the search, `LevelReport` for the curve, `SweepRecord` for the store, packed samples.
Imports:   `core.stats`.
"""

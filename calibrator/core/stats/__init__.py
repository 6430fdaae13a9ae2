"""Statistics that know nothing of sweeps.

Does:      quantiles and ratios with distribution-free intervals; how long slow spells last.
Comes in:  plain sequences of numbers.
Goes out:  estimates that say what the sample supports, and None where it supports nothing.
Imports:   numpy and scipy; nothing else of core.
"""

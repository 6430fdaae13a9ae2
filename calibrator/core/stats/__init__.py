"""Statistics, independent of sweeps.

Does:      quantiles and ratios with distribution-free intervals; how long slow spells last.
Comes in:  plain sequences of numbers.
Goes out:  estimates as far as the sample supports them, else None.
Imports:   numpy and scipy; nothing else of core.
"""

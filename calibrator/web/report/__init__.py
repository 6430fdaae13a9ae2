"""A sweep as one self-contained document.

Does:      HTML and Markdown reports, their charts, the comparison of two sweeps.
Comes in:  sweep documents.
Goes out:  text without scripts or external resources.
Imports:   `web.http`, `web.wire`.
"""

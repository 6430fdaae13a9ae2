"""Web pages. They work without JavaScript.

Does:      overview, backend page, forms; style sheets, scripts and templates beside the code.
Comes in:  the same documents that the API serves.
Goes out:  HTML.
Imports:   `web.report`, `web.http`, `web.wire`.
"""

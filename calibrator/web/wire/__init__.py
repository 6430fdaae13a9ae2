"""The JSON documents, as schemas and as projections of core values.

Does:      pydantic models of every document, and the functions that fill them.
Comes in:  views, records, pollers.
Goes out:  validated documents.
Imports:   `core`, `ports`; nothing else of `web`.
"""

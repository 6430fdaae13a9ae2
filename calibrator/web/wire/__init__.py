"""The JSON documents, as schemas and as projections of core values.

Does:      one pydantic model for each document, read from core values by attribute names.
Comes in:  views, records, pollers.
Goes out:  validated documents.
Imports:   `core`, `ports`; nothing else of `web`.
"""

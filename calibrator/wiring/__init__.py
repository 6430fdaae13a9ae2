"""The composition root: settings become objects here, and nowhere else are concrete adapters imported.

Does:      builds the service with its parts, the sweep's process, the HTTP server, TLS, logs, tracing.
Comes in:  `Settings`.
Goes out:  running objects for `cli`.
Imports:   everything below `cli`.
"""

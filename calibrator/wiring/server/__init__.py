"""The HTTP server's surroundings: sockets, TLS, limits on connections, tokens that are rotated.

Does:      listens, follows certificate and token files, bounds what a connection may take, prepares the process.
Comes in:  settings of `listen` and `auth`.
Goes out:  sockets, TLS contexts, uvicorn's configuration.
Imports:   uvicorn, `settings`, `web`, `errors`.
"""

"""What every route shares.

Does:      the operation table that makes routes and OpenAPI, problem documents, authentication, sessions, audit log,
           protective headers, parsing of queries and bodies.
Comes in:  requests.
Goes out:  parsed values or problems.
Imports:   `web.wire`.
"""

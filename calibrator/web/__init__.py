"""HTTP projections of the snapshot: what gateways poll, what Prometheus scrapes, what people read.

Does:      routes, documents, pages, metrics, authentication, audit.
Comes in:  requests; the `Operator` port.
Goes out:  responses. No adapter is seen from here.
Imports:   `ports`, `core`, `errors`.

Upper to lower: app > api | pages > poll | report > http > wire. `prometheus` stands alone.
"""

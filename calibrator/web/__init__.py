"""HTTP projections of the snapshot: what gateways poll, what Prometheus scrapes, what people read."""

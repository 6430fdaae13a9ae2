"""Adapters to gateways that pull their cap: one vendor, one file."""

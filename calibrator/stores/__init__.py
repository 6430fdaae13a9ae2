"""Adapters that remember recommendations and sweeps."""

"""Adapters that read an engine's own metrics."""

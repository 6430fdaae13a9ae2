"""Adapters that say which replicas a backend has."""

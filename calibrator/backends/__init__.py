"""Adapters to what is measured: the timed OpenAI client, and the simulated engine."""

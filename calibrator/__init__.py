"""calibrator: how many requests an LLM backend may have in flight before P99 latency breaks its SLA."""

__version__ = "0.1.0"

"""Adapters to what is measured: the timed OpenAI client, and the simulated engine.

Does:      sends one streamed request and stamps its events; inspects a backend before a sweep; finds stubs.
Comes in:  a `Target`, probe requests.
Goes out:  samples (a failure is data), `BackendFacts`.
Imports:   `ports`, `core`, `errors`; no other adapter.
"""

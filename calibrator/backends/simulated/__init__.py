"""A continuous-batching engine without a GPU: a model of steps, served over HTTP or used in-process.

Does:      batches, prefills and decodes by a step-time model; keeps prefixes; shows vLLM metrics; knows its own truth.
Comes in:  OpenAI requests; parameters by name (`parameters`).
Goes out:  streamed answers, refusals, a metrics page, `/truth`.
Imports:   `core.records`, `errors`; `truth` and `engine` see neither search nor load, which they judge.
"""

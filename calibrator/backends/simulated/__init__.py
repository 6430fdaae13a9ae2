"""A continuous-batching engine without a GPU: a model of steps, served over HTTP or used in-process."""

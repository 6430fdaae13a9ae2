"""Orchestration: awaits what `core` decided, through the contracts in `ports`."""

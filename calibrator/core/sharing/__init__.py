"""The cap divided among gateways that count for themselves.

Does:      max-min fair shares that never sum to more than the cap; the same over several instances of the service.
Comes in:  polls with what each client says of itself, the cap, the time.
Goes out:  one share per client, or "wait" for a joiner.
Imports:   nothing else of core.
"""

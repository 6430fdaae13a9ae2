"""The cap divided among gateways that each limit their own concurrency.

Does:      max-min fair shares that never sum to more than the cap; the same over several instances of the service.
Comes in:  polls with what each client reports about itself, the cap, the time.
Goes out:  one share per client, or "wait" for a new one.
Imports:   nothing else of core.
"""

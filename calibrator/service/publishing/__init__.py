"""What is served, and its way into the store.

Does:      recommendations, pins, shares (of one instance or several), leases, waking of long polls, the store's
           health.
Comes in:  recommendations to publish, polls, pins.
Goes out:  answers from memory at once; writes behind, retried until they succeed.
Imports:   `ports`, `core`.
"""

"""Adapters to gateways that pull their cap: one vendor, one file.

Does:      Envoy's runtime discovery, HAProxy's agent-check, Traefik's document; a LiteLLM callback and an ASGI
           middleware that run inside other programs.
Comes in:  polls in the vendor's own protocol, through the `Operator` port; the last two use `client` only.
Goes out:  the share of that gateway, in its own format.
Imports:   `client`, `ports`, `core`, `errors`; no other adapter.
"""

"""The network of sandboxes: a user-mode stack on a namespace of their own, and published ports.

`bridge.attach` connects a network namespace, `ports.parse_ports` reads `-p`, `probe.probe` says
what works here.

What a sandbox on such a network can reach: what the host can, over IPv4, and the host's resolver.
What it cannot: the host's own loopback, link-local addresses (metadata services among them) and
IPv6. A filter in the kernel sees to that (tap.py), whatever the stack lets through. Services of
the host on 0.0.0.0, or on an address of its own, are reachable, as from any other machine.
"""

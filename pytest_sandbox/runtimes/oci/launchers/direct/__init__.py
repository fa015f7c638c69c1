"""Our own launcher: a sandbox from a bundle in milliseconds, with all that runc isolates.

`blank` makes namespaces ahead (the *blank*), `staging` fills them with the system's mounts,
`settling` gives a blank its root, `agent` is then its process 1, `command` runs in each command.
"""

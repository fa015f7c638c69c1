"""Our own launcher: a sandbox from a bundle in milliseconds, with all that runc isolates.

Process 1 is a small `program` that makes the system calls of `tables` (`executor` is the same in
Python). `blank` makes namespaces ahead (the *blank*), `staging` fills them with the mounts of the
system, `settling` gives a blank its root, `command` is how its commands are started: all of them
write tables, which go through `hands`.
"""

"""The runtime without a daemon: runc or crun, driven from our own supervisor."""

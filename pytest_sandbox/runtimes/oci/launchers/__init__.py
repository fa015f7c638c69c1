"""What starts a sandbox from a bundle: runc or crun, or our own `direct` launcher."""

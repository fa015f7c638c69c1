"""How a base image, or the host's trust and proxies, reach the sandbox."""

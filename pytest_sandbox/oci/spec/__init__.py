"""Image config -> OCI runtime spec: one file a subject, `generate` puts them together."""

"""Recipe files: TOML in, typed Recipe out, with lint and migration."""

"""The `pytest-sandbox` command, one module a verb."""

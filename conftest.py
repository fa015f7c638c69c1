"""For the project's own tests: pytester runs pytest inside pytest."""

from __future__ import annotations

pytest_plugins = ["pytester"]

"""The recipes of the tests: templates with a port and hashes to fill in, and what they install."""

from __future__ import annotations

import re
from pathlib import Path

FOLDER = Path(__file__).parent


def fill(name, folder, **values):
    """Write the recipe `name` with `@KEY@` replaced into `folder`; its path."""
    text = (FOLDER / f"{name}.toml").read_text(encoding="utf-8")
    for key, value in values.items():
        text = text.replace(f"@{key}@", str(value))
    left = re.findall(r"@[A-Z0-9_]+@", re.sub(r"(?m)^#.*$", "", text))
    assert not left, f"{name}.toml needs {left}"
    path = Path(folder) / f"{name}.toml"
    path.write_text(text, encoding="utf-8")
    return path

"""The bare plugin that collection is held against: parse each TOML, yield empty items.

The item names come from a JSON file (path -> names) in BARE_ITEMS, so that both sides print the
same ids. Loaded with `-p bare_plugin`; imports nothing else.
"""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path

import pytest

NAMES = json.loads(Path(os.environ["BARE_ITEMS"]).read_text(encoding="utf-8"))


class EmptyItem(pytest.Item):
    def runtest(self):
        pass


class TomlFile(pytest.File):
    def collect(self):
        tomllib.loads(self.path.read_text(encoding="utf-8"))
        for name in NAMES[str(self.path)]:
            yield EmptyItem.from_parent(self, name=name)


def pytest_collect_file(file_path, parent):
    if file_path.suffix == ".toml":
        return TomlFile.from_parent(parent, path=file_path)
    return None

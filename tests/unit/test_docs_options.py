"""docs/options.md has every setting: option, variable, ini key, choices, default."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pytest_sandbox.limits import PROFILES, parse_size
from pytest_sandbox.oci.bounds import DEFAULT_BOUNDS
from pytest_sandbox.options import BOUNDS
from pytest_sandbox.settings import SETTINGS, Settings, parse_age

PAGE = Path(__file__).parents[2] / "docs" / "options.md"
ROW = re.compile(
    r"^\| `--sandbox-([a-z-]+)` \| `([A-Z_]+)` \| `([a-z_]+)` \| (.*?) \| (.*?) \|$", re.MULTILINE
)


@pytest.fixture(scope="module")
def rows():
    """Option name -> (variable, ini key, default, meaning)."""
    found = ROW.findall(PAGE.read_text(encoding="utf-8"))
    assert len({name for name, *_ in found}) == len(found), "an option stands there twice"
    return {name: rest for name, *rest in found}


def test_the_table_has_exactly_the_settings(rows):
    assert list(rows) == [setting.name for setting in SETTINGS]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_variable_key_and_choices(rows, setting):
    variable, key, _, meaning = rows[setting.name]
    assert variable == setting.variable
    assert key == f"sandbox_{setting.key}"
    for choice in setting.choices:
        assert f"`{choice}`" in meaning


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_default(rows, setting):
    shown = rows[setting.name][2].replace("`", "")
    default = getattr(Settings(), setting.key)
    if setting.kind == "age":
        assert parse_age(shown) == default
    elif setting.key in {"timeout", "memory", "cpus", "pids"}:
        assert default is None
        small, big = shown.removesuffix(" (profile)").split(" or ")
        read = parse_size if setting.kind == "size" else float
        assert read(small) == getattr(PROFILES["default"], setting.key)
        assert read(big) == getattr(PROFILES["build"], setting.key)
    elif setting.key in {"nofile", "disk", "output"}:
        assert default is None
        assert parse_size(shown) == getattr(PROFILES["default"], setting.key)
    elif setting.kind == "size":
        assert parse_size(shown) == default
    elif setting.kind in {"float", "int", "count"}:
        assert float(shown) == default
    elif setting.kind == "flag":
        assert (shown, default) == ("off", False)
    elif setting.kind == "list" and default:
        assert shown == " ".join(default)
    elif setting.kind == "text" and default is not None:
        assert shown == default


def test_the_bounds_are_those_of_the_library():
    text = PAGE.read_text(encoding="utf-8")
    table = re.findall(r"^\| `([a-z-]+)` \| (\d+[mg]?) \|", text, re.MULTILINE)
    assert [name for name, _ in table] == list(BOUNDS)
    for name, shown in table:
        assert parse_size(shown) == getattr(DEFAULT_BOUNDS, name.replace("-", "_"))


def test_the_page_names_nothing_else():
    known = {setting.variable for setting in SETTINGS}
    known |= {"PYTEST_SANDBOX_NAME", "PYTEST_SANDBOX_DATA", "PYTEST_SANDBOX_CACHE"}
    text = PAGE.read_text(encoding="utf-8")
    assert set(re.findall(r"PYTEST_SANDBOX_[A-Z_]+", text)) <= known

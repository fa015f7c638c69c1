"""docs/engines.md lists every diagnosis of sandboxes without a daemon."""

from __future__ import annotations

import re
from pathlib import Path

from pytest_sandbox.oci import cgroup_access, engine_trial, probe_namespaces
from pytest_sandbox.oci.snapshots.base import NAMES

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "pytest_sandbox" / "oci").rglob("*.py"))
COMPOSED = {
    "no-subuid",
    "no-subgid",
    "old-runc",
    "old-crun",
    "hanging-runc",
    "insecure-runc",
    "no-fuse",
    "no-snapshotter",
    "engine-hangs",
    "engine-fails",
    "no-direct",
    *(f"no-{name}" for name in NAMES if name != "fuse-overlayfs"),
}
"""Ids that the sources put together, or give by position."""
INNER = {"not-ours", "network-stack-missing"}
"""Of processes that are not the user's to ask; and what doctor calls no-net-stack."""


def known():
    """Every id of a diagnosis, as the sources have it."""
    found = set(COMPOSED)
    for source in SOURCES:
        text = source.read_text(encoding="utf-8")
        found |= set(re.findall(r'problem="([a-z0-9-]+)"', text))
        found |= set(re.findall(r'Finding\(\s*"([a-z0-9-]+)", False', text))
        found |= set(re.findall(r'\["id"\] = "([a-z0-9-]+)"', text))
    found |= set(cgroup_access._NEXT)
    found |= {cause[0] for cause in probe_namespaces._CAUSES}
    found |= {meaning[1] for meaning in engine_trial._MEANINGS}
    return found - INNER


def listed():
    """Every id of the page's table."""
    page = (ROOT / "docs" / "engines.md").read_text(encoding="utf-8")
    table = page.partition("### What doctor finds")[2].partition("\n### ")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return {name for row in rows for name in re.findall(r"`([a-z0-9-]+)`", row)}


def test_the_table_has_every_diagnosis():
    assert known() - listed() == set()


def test_the_table_has_no_other():
    assert listed() - known() == {"inside-container"}  # no diagnosis: it only explains

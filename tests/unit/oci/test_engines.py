"""Engines and inits: found where they are, their versions judged."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from pytest_sandbox.oci import engines
from pytest_sandbox.oci.engines import find_engine, find_init, find_program, is_static, read_engine
from pytest_sandbox.oci.findings import Lacking, install
from pytest_sandbox.oci.versions import Version, hangs, open_holes, parse_version

if TYPE_CHECKING:
    from pathlib import Path


def _program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\nprintf '%s\\n' '{text}'\n")
    path.chmod(0o755)
    return path


@pytest.fixture(autouse=True)
def _only_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "SYSTEM_FOLDERS", ())
    monkeypatch.setattr(engines, "_INIT_FOLDERS", ())


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("runc version 1.1.5+ds1", Version(1, 1, 5)),
        ("1.1.5+ds1-1+deb12u1", Version(1, 1, 5)),
        ("1.4.0-rc.3+dev", Version(1, 4, 0, 3)),
        ("1.0.0-rc93", Version(1, 0, 0, 93)),
        ("1.5.0~rc2", Version(1, 5, 0, 2)),
        ("crun version 1.8", Version(1, 8)),
        ("crun version UNKNOWN", None),
    ],
)
def test_versions_are_read(text: str, version: Version | None) -> None:
    assert parse_version(text) == version


def test_a_candidate_comes_before_its_version() -> None:
    assert Version(1, 4, 0, 3) < Version(1, 4) < Version(1, 4, 1)
    assert str(Version(1, 4, 0, 3)) == "1.4.0-rc.3"
    assert str(Version(1, 4)) == "1.4.0"


@pytest.mark.parametrize(
    ("version", "wrong"),
    [
        ("1.2.9", False),
        ("1.3.0-rc.1", True),
        ("1.3.0", True),
        ("1.3.5", True),
        ("1.3.6", False),
        ("1.4.0-rc.2", True),
        ("1.4.1", True),
        ("1.4.2", False),
        ("1.5.0", False),
        ("1.1.5", False),
    ],
)
def test_versions_that_hang(version: str, wrong: bool) -> None:
    parsed = parse_version(version)
    assert parsed is not None
    assert hangs("runc", parsed) is wrong
    assert not hangs("crun", parsed)


@pytest.mark.parametrize(
    ("version", "holes"),
    [
        ("1.1.11", {"CVE-2024-21626", "CVE-2025-31133", "CVE-2026-41579"}),
        ("1.1.12", {"CVE-2025-31133", "CVE-2026-41579"}),
        ("1.2.8", {"CVE-2026-41579"}),
        ("1.3.2", {"CVE-2025-31133", "CVE-2026-41579"}),
        ("1.3.6", set()),
        ("1.4.0-rc.2", {"CVE-2025-31133", "CVE-2026-41579"}),
        ("1.4.2", {"CVE-2026-41579"}),
        ("1.4.3", set()),
        ("1.5.0-rc.2", {"CVE-2026-41579"}),
        ("1.5.0-rc.3", set()),
        ("1.6.0", set()),
    ],
)
def test_security_floors(version: str, holes: set[str]) -> None:
    parsed = parse_version(version)
    assert parsed is not None
    found = set(open_holes("runc", parsed)) - {"CVE-2025-52565", "CVE-2025-52881"}
    assert found == holes
    assert open_holes("runc", parsed, holes | {"CVE-2025-52565", "CVE-2025-52881"}) == []
    assert open_holes("crun", parsed) == []


def test_runc_comes_first_and_a_hanging_one_gives_way(tmp_path: Path) -> None:
    path = {"PATH": str(tmp_path)}
    crun = _program(tmp_path / "crun", "crun version 1.14.1")
    assert find_engine("", path).path == crun
    runc = _program(tmp_path / "runc", "runc version 1.3.6")
    assert find_engine("", path).path == runc
    _program(tmp_path / "runc", "runc version 1.3.5")
    assert find_engine("", path).path == crun
    assert find_engine("runc", path).path == runc
    crun.unlink()
    found = find_engine("", path).findings()
    assert [(one.id, one.fatal) for one in found][:1] == [("hanging-runc", True)]
    assert "1.3.6, 1.4.2 and 1.5.0" in found[0].what
    assert found[0].next_step


def test_old_and_insecure_engines_are_told_apart(tmp_path: Path) -> None:
    _program(tmp_path / "runc", "runc version 1.0.3\ncommit: v1.0.3-0-gf46b6ba2")
    found = {one.id: one for one in find_engine("", {"PATH": str(tmp_path)}).findings()}
    assert set(found) == {"old-runc", "insecure-runc"}
    assert found["old-runc"].fatal
    assert not found["insecure-runc"].fatal
    assert "CVE-2024-21626" in found["insecure-runc"].what


def test_what_is_no_engine(tmp_path: Path) -> None:
    with pytest.raises(Lacking, match="neither runc nor crun") as none:
        find_engine("", {"PATH": str(tmp_path)})
    assert none.value.problem == "no-runc"
    assert none.value.finding.fatal
    other = _program(tmp_path / "runc", "podman version 4.3.1")
    with pytest.raises(Lacking, match="tells no version") as unknown:
        find_engine("", {"PATH": str(tmp_path)})
    assert unknown.value.problem == "engine-unknown"
    with pytest.raises(Lacking):
        read_engine(other)
    with pytest.raises(Lacking, match="no program"):
        find_engine(str(tmp_path / "no such"))
    with pytest.raises(Lacking, match="no program"):
        find_engine(str(tmp_path))


def test_parts_of_path_that_are_not_absolute_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _program(tmp_path / "runc", "runc version 1.3.6")
    monkeypatch.chdir(tmp_path)
    assert find_program("runc", {"PATH": ":."}) is None
    monkeypatch.setattr(engines, "SYSTEM_FOLDERS", (str(tmp_path),))
    assert find_program("runc", {"PATH": ":."}) == tmp_path / "runc"


def _elf(path: Path, kinds: list[int], wide: bool = True, order: str = "<") -> Path:
    """A header and a table of program headers; nothing that could run."""
    start, size = (64, 56) if wide else (52, 32)
    head = bytearray(start)
    head[:6] = b"\x7fELF" + bytes([2 if wide else 1, 1 if order == "<" else 2])
    struct.pack_into(f"{order}{'Q' if wide else 'I'}", head, 32 if wide else 28, start)
    struct.pack_into(f"{order}HH", head, 54 if wide else 42, size, len(kinds))
    table = b"".join(struct.pack(f"{order}I", kind).ljust(size, b"\0") for kind in kinds)
    path.write_bytes(bytes(head) + table)
    return path


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("order", ["<", ">"])
def test_static_programs(tmp_path: Path, wide: bool, order: str) -> None:
    assert is_static(_elf(tmp_path / "static", [1, 1, 4], wide, order))
    assert not is_static(_elf(tmp_path / "dynamic", [1, 3, 4], wide, order))


def test_what_is_no_elf_is_not_static(tmp_path: Path) -> None:
    assert not is_static(_program(tmp_path / "script", "x"))
    assert not is_static(tmp_path / "nothing")
    cut = _elf(tmp_path / "cut", [1, 1])
    cut.write_bytes(cut.read_bytes()[:70])
    assert not is_static(cut)


def test_an_init_must_be_static_and_say_why_not(tmp_path: Path) -> None:
    _program(tmp_path / "tini", "tini version 0.19.0")
    with pytest.raises(Lacking, match=r"tini needs shared libraries.*sandboxes need an init") as no:
        find_init("", {"PATH": str(tmp_path)})
    assert no.value.problem == "no-init"
    with pytest.raises(Lacking, match="cannot be run"):
        find_init(str(tmp_path / "other"))
    with pytest.raises(Lacking, match="no static tini is here: "):
        find_init("", {"PATH": "/nowhere"})


@pytest.mark.parametrize(
    ("release", "tool", "command"),
    [
        ("ID=debian\n", "newuidmap", "apt-get install uidmap"),
        ("ID=linuxmint\nID_LIKE='ubuntu debian'\n", "runc", "apt-get install runc"),
        ('ID="fedora"\n', "tini", "dnf install tini-static"),
        ("ID=opensuse-leap\n", "pasta", "zypper install passt"),
        ("ID=gentoo\n", "tini", "install tini"),
        ("ID='broken\n", "tini", "install tini"),
    ],
)
def test_how_to_install(tmp_path: Path, release: str, tool: str, command: str) -> None:
    file = tmp_path / "os-release"
    file.write_text(release)
    assert install(tool, file) == command

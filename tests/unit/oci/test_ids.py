"""Which ids sandboxes get, from fake account files."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from pytest_sandbox.oci.ids import BLOCK, NoIds, Range, find_ids, free_block

FIXED = free_block(Path("/nonexistent"))
"""Where root's own block begins when nobody has any ids."""


def make_etc(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def both(folder: Path, text: str) -> Path:
    """The same entries for users and groups."""
    return make_etc(folder, subuid=text, subgid=text)


@pytest.fixture
def as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> str:
    """An ordinary user, 1234:4321."""
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    monkeypatch.setattr(os, "getegid", lambda: 4321)
    entry = pwd.struct_passwd(("ann", "x", 1234, 4321, "", "/home/ann", "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwuid", {1234: entry}.__getitem__)
    return "ann"


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize(
    ("text", "first", "whose"),
    [
        ("ann:100000:65536\ncontainers:300000:65536\nroot:200000:65536\n", 200000, "root"),
        ("containers:300000:65536\n0:200000:65536\n", 200000, "0"),
        ("ann:100000:65536\ncontainers:300000:70000\n", 300000, "containers"),
        ("root:200000:65535\ncontainers:300000:65536\n", 300000, "containers"),
        ("root:200000:1000\nroot:400000:65536\n", 400000, "root"),
        (f"root:{(1 << 31) - BLOCK + 1}:65536\ncontainers:300000:65536\n", 300000, "containers"),
        (f"root:{(1 << 31) - BLOCK}:65536\n", (1 << 31) - BLOCK, "root"),
        ("root:4294000000:65536\nroot:400000:65536\n", 400000, "root"),
        ("root\nroot:x:65536\nroot:-5:65536\n:1:2\n\nroot:400000:65536", 400000, "root"),
    ],
)
def test_roots_entry_comes_first_then_containers(
    tmp_path: Path, text: str, first: int, whose: str
) -> None:
    found = find_ids(both(tmp_path, text))
    assert found.uids == found.gids == (Range(0, first, BLOCK),)
    assert (found.root, found.size, found.rootless) == ((first, first), BLOCK, False)
    assert f"the entries of {whose} in {tmp_path}/subuid" in found.source


@pytest.mark.usefixtures("as_root")
def test_users_and_groups_have_their_own_entries(tmp_path: Path) -> None:
    etc = make_etc(tmp_path, subuid="root:200000:65536\n", subgid="root:500000:65536\n")
    assert find_ids(etc).root == (200000, 500000)


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize(
    "text",
    [
        "",
        "ann:100000:65536\n",
        "root:200000:65535\n",
        f"root:{1 << 31}:65536\n",
        "root:2147418113:65536\ncontainers:1:2\n",
    ],
)
def test_root_without_a_usable_entry_has_a_block_of_its_own(tmp_path: Path, text: str) -> None:
    etc = both(tmp_path, text)
    found = find_ids(etc)
    start = free_block(etc)
    assert found.uids == found.gids == (Range(0, start, BLOCK),)
    assert start >= FIXED
    assert start + BLOCK <= 1 << 31
    assert "outside of every account" in found.source


@pytest.mark.usefixtures("as_root")
def test_one_file_alone_is_not_enough(tmp_path: Path) -> None:
    found = find_ids(make_etc(tmp_path, subuid="root:200000:65536\n"))
    assert found.root == (FIXED, FIXED)


@pytest.mark.parametrize(
    ("name", "text", "shift"),
    [
        ("subuid", f"ann:{FIXED}:1\n", 1),
        ("subgid", f"ann:{FIXED + BLOCK - 1}:1\n", 1),
        ("subuid", f"ann:{FIXED - 10}:{BLOCK}\n", 1),
        ("subuid", f"ann:{FIXED - 10}:10\nbob:{FIXED + BLOCK}:10\n", 0),
        ("subgid", f"ann:{FIXED}:{BLOCK + 1}\n", 2),
        ("subuid", f"bob:{FIXED + BLOCK}:{BLOCK}\nann:{FIXED}:{BLOCK}\n", 2),
        ("passwd", f"ann:x:{FIXED + 7}:100::/:/bin/sh\n", 1),
        ("passwd", f"ann:x:100:{FIXED + 7}::/:/bin/sh\n", 1),
        ("group", f"ann:x:{FIXED + BLOCK - 1}:\n", 1),
        ("group", f"ann:x:{FIXED + BLOCK}:\n", 0),
        ("subuid", "broken\nann:x:y\n:::\n", 0),
    ],
)
def test_a_free_block_avoids_what_anybody_has(
    tmp_path: Path, name: str, text: str, shift: int
) -> None:
    make_etc(tmp_path, **{name: text})
    assert [free_block(tmp_path) for _ in range(3)] == [FIXED + shift * BLOCK] * 3


def test_a_free_block_avoids_all_files_together(tmp_path: Path) -> None:
    etc = make_etc(
        tmp_path,
        subuid=f"ann:{FIXED}:{BLOCK}\n",
        subgid=f"ann:{FIXED + BLOCK}:{BLOCK}\n",
        passwd=f"ann:x:{FIXED + 2 * BLOCK}:{FIXED + 3 * BLOCK}::/:/bin/sh\n",
        group=f"ann:x:{FIXED + 4 * BLOCK}:\n",
    )
    assert free_block(etc) == FIXED + 5 * BLOCK


def test_an_ordinary_user_is_root_with_its_own_id(tmp_path: Path, account: str) -> None:
    found = find_ids(both(tmp_path, f"root:1:65536\n{account}:100000:65536\n"))
    assert found.uids == (Range(0, 1234, 1), Range(1, 100000, BLOCK))
    assert found.gids == (Range(0, 4321, 1), Range(1, 100000, BLOCK))
    assert (found.root, found.size, found.rootless) == ((1234, 4321), BLOCK + 1, True)


def test_an_entry_may_name_the_number(tmp_path: Path, account: str) -> None:
    found = find_ids(both(tmp_path, "1234:100000:65536\n"))
    assert found.uids[1] == Range(1, 100000, BLOCK)


@pytest.mark.parametrize(
    ("files", "problem", "option"),
    [
        ({}, "no-subuid", "--add-subuids"),
        ({"subgid": "ann:100000:65536\n"}, "no-subuid", "--add-subuids"),
        ({"subuid": "ann:100000:65536\n"}, "no-subgid", "--add-subgids"),
        (
            {"subuid": "ann:100000:65535\n", "subgid": "ann:100000:65536\n"},
            "no-subuid",
            "--add-subuids",
        ),
        (
            {"subuid": "ann:100000:65536\n", "subgid": "ann:2147483000:65536\n"},
            "no-subgid",
            "--add-subgids",
        ),
        ({"subuid": "root:1:65536\ncontainers:1:65536\n"}, "no-subuid", "--add-subuids"),
    ],
)
def test_an_ordinary_user_without_ids_is_told(
    tmp_path: Path, account: str, files: dict[str, str], problem: str, option: str
) -> None:
    with pytest.raises(NoIds) as caught:
        find_ids(make_etc(tmp_path, **files))
    assert caught.value.problem == problem
    assert f"{account} has no range of 65536 ids in {tmp_path}/{problem[3:]}" in caught.value.what
    assert f"usermod {option} START-END {account}" in caught.value.next_step


@pytest.mark.parametrize("text", ["root:200000:65536\nann:100000:65536\n", "ann:1:2\n"])
@pytest.mark.parametrize("euid", [0, 1234])
def test_the_files_are_only_read(
    tmp_path: Path, account: str, monkeypatch: pytest.MonkeyPatch, *, text: str, euid: int
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: euid)
    etc = both(tmp_path, text)
    make_etc(etc, passwd=f"ann:x:{FIXED}:100::/:/bin/sh\n", group="ann:x:100:\n")

    def seen() -> dict[str, tuple[bytes, int]]:
        return {one.name: (one.read_bytes(), one.stat().st_mtime_ns) for one in etc.iterdir()}

    before = seen()
    try:
        find_ids(etc)
    except NoIds:
        assert euid == 1234
    assert seen() == before
    assert set(before) == {"subuid", "subgid", "passwd", "group"}


def test_keys_tell_maps_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def key(uid: str, gid: str, euid: int) -> str:
        monkeypatch.setattr(os, "geteuid", lambda: euid)
        entries = {"subuid": f"{euid}:{uid}:65536\n", "subgid": f"{euid}:{gid}:65536\n"}
        return find_ids(make_etc(tmp_path, **entries)).key()

    monkeypatch.setattr(os, "getegid", lambda: 4321)
    maps = [
        ("200000", "200000", 0),
        ("300000", "200000", 0),
        ("200000", "300000", 0),
        ("200000", "200000", 1234),
        ("200000", "200000", 1235),
        ("300000", "200000", 1234),
    ]
    keys = [key(*one) for one in maps]
    assert len(set(keys)) == len(maps)
    assert keys == [key(*one) for one in maps]

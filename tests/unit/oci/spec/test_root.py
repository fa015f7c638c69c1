"""Roots of strangers: links, FIFOs, endless files and wrong kinds are met while a root is made
ready. Nothing outside of it is read, made or waited for.
"""

from __future__ import annotations

import os
import signal
import socket
from typing import TYPE_CHECKING, Any

import pytest

from pytest_sandbox.errors import InvalidImage, MissingDirectory, UnknownUser, UsageError
from pytest_sandbox.oci.config import parse_image_config
from pytest_sandbox.oci.spec import users
from pytest_sandbox.oci.spec.mounts import Bind
from pytest_sandbox.oci.spec.root import Prepared, prepare_root, root_request
from pytest_sandbox.oci.spec.users import User, resolve_user

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def no_blocking() -> Iterator[None]:
    """A FIFO that is opened would wait for ever: here it ends the test instead."""
    signal.alarm(10)
    yield
    signal.alarm(0)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder of the host with a passwd of its own."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "passwd").write_text("canary:x:66:66::/canary:/bin/sh\n")
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root/etc").mkdir(parents=True)
    return tmp_path / "root"


def ready(root: Path, *, user: str = "", cwd: str = "", **more: Any) -> Prepared:
    volumes = {key: {} for key in more.pop("volumes", ())}
    config = parse_image_config({"config": {"Volumes": volumes}})
    descriptor = os.open(root, os.O_PATH | os.O_DIRECTORY)
    try:
        return prepare_root(descriptor, root_request(config, user=user, cwd=cwd, **more))
    finally:
        os.close(descriptor)


def who(root: Path, spec: str) -> User:
    descriptor = os.open(root, os.O_PATH | os.O_DIRECTORY)
    try:
        return resolve_user(descriptor, spec)
    finally:
        os.close(descriptor)


def test_no_account_files(root: Path) -> None:
    assert who(root, "") == User(0, 0, (), "/", "")
    assert who(root, "7:8") == User(7, 8, (), "/", "")
    with pytest.raises(UnknownUser, match="'app'"):
        who(root, "app")
    with pytest.raises(UnknownUser, match="'staff'"):
        who(root, "0:staff")


def test_links_in_the_root_are_followed_inside_of_it(root: Path, outside: Path) -> None:
    (root / "etc/passwd").symlink_to(outside / "passwd")
    with pytest.raises(UnknownUser, match="'canary'"):
        who(root, "canary")
    (root / "etc/passwd").unlink()
    (root / "real").write_text("app:x:5:6::/h:/bin/sh\n")
    (root / "etc/passwd").symlink_to("../../../../../real")
    assert who(root, "app") == User(5, 6, (), "/h", "app")


def test_folder_of_account_files_leads_out(root: Path, outside: Path) -> None:
    (root / "etc").rmdir()
    (root / "etc").symlink_to(outside)
    with pytest.raises(UnknownUser):
        who(root, "canary")


@pytest.mark.parametrize("kind", ["fifo", "folder", "socket"])
def test_account_file_of_another_kind(
    root: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = root / "etc/passwd"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        monkeypatch.chdir(root)  # a socket's path has at most 107 bytes
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("etc/passwd")
    with pytest.raises(InvalidImage, match=r"etc/passwd of the image is a .*not a regular file"):
        who(root, "app")
    assert who(root, "7:8") == User(7, 8)  # a number needs no file
    missing = ready(root).missing
    assert missing == (("/etc/group",) if kind == "folder" else ("/etc/passwd", "/etc/group"))


def test_account_file_that_leads_nowhere(root: Path) -> None:
    (root / "etc/passwd").symlink_to("/gone/passwd")
    found = ready(root)
    assert found.missing == ("/etc/passwd", "/etc/group")
    assert found.places["/etc/passwd"] == "/gone/passwd"
    assert (root / "gone/passwd").read_bytes() == b""


def test_account_files_have_a_bound(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (root / "etc/passwd").open("wb") as file:
        file.truncate(users.FILE_LIMIT + 1)
    with pytest.raises(InvalidImage, match=f"more than {users.FILE_LIMIT} bytes"):
        who(root, "app")


def test_passwd_without_text(root: Path) -> None:
    (root / "etc/passwd").write_bytes(b"\xff\xfe:x:1:1::\xff:\napp:x:-1:0::/:\napp:x:5:6::/:\n")
    assert who(root, "app").uid == 5


def test_working_folder_and_volumes_are_made(root: Path) -> None:
    (root / "link").symlink_to("/there")
    found = ready(root, cwd="/link/a/b", volumes=["/data/x", "/link/../v"])
    assert (root / "there/a/b").is_dir()
    assert (root / "data/x").is_dir()
    assert found.places == {
        "/data/x": "/data/x",
        "/v": "/v",
        "/etc/passwd": "/etc/passwd",
        "/etc/group": "/etc/group",
    }
    assert found.created == (
        *("/data", "/data/x", "/v", "/there", "/there/a", "/there/a/b"),
        *("/etc/passwd", "/etc/group"),
    )
    assert oct((root / "there/a/b").stat().st_mode) == "0o40755"


def test_nothing_is_made_outside(root: Path, outside: Path) -> None:
    (root / "out").symlink_to(outside)
    (root / "up").symlink_to("../../../../..")
    (root / "etc/hosts").symlink_to(outside / "hosts")
    before = sorted(outside.iterdir())
    bind = Bind("/dev/null", "/etc/hosts", folder=False)
    found = ready(root, cwd=f"/up{outside}/x", volumes=["/out/v"], mounts=[bind])
    assert sorted(outside.iterdir()) == before
    assert found.places["/out/v"] == f"{outside}/v"
    assert (root / str(outside).lstrip("/") / "v").is_dir()
    assert (root / str(outside).lstrip("/") / "x").is_dir()
    assert found.places["/etc/hosts"] == f"{outside}/hosts"


def test_umask_does_not_matter(root: Path) -> None:
    before = os.umask(0o077)
    try:
        ready(root, cwd="/w", mounts=[Bind("/dev/null", "/f", folder=False)])
    finally:
        os.umask(before)
    assert oct((root / "w").stat().st_mode) == "0o40755"
    assert oct((root / "f").stat().st_mode) == "0o100644"


def test_folder_around_a_new_one_keeps_its_time(root: Path) -> None:
    os.utime(root, ns=(1_000_000_000, 2_000_000_001))
    ready(root, cwd="/w")
    assert root.stat().st_mtime_ns == 2_000_000_001


@pytest.mark.parametrize("place", ["/fifo", "/fifo/x", "/file"])
def test_working_folder_is_something_else(root: Path, place: str) -> None:
    os.mkfifo(root / "fifo")
    (root / "file").touch()
    with pytest.raises(MissingDirectory, match="is no folder"):
        ready(root, cwd=place)


@pytest.mark.parametrize("place", ["/proc/self/fd/8", "/link", "/link/../fd"])
def test_working_folder_in_proc(root: Path, place: str) -> None:
    """CVE-2024-21626, also behind a link."""
    (root / "link").symlink_to("proc/self/fd/8")
    (root / "proc").mkdir()
    if place == "/link/../fd":
        ready(root, cwd=place)  # Docker's rule: cleaned before any link is seen
        assert (root / "fd").is_dir()
        return
    with pytest.raises(MissingDirectory, match="lies in /proc"):
        ready(root, cwd=place)
    assert list((root / "proc").iterdir()) == []


def test_links_without_an_end(root: Path) -> None:
    (root / "a").symlink_to("b")
    (root / "b").symlink_to("a")
    with pytest.raises(InvalidImage, match="link without an end"):
        ready(root, cwd="/a")


def test_mount_points(root: Path) -> None:
    (root / "var").mkdir()
    (root / "var/run").symlink_to("../run")
    os.mkfifo(root / "etc/resolv.conf")
    binds = [
        Bind("/x", "/var/run/made"),
        Bind("/x", "/made.txt", folder=False),
        Bind("/x", "/etc/resolv.conf", folder=False),
        Bind("/x", "/dev/.init", folder=False),
        Bind("/x", "/var/run/made/inner"),
        Bind("/x", "/scratch/deep/file", folder=False),
    ]
    found = ready(root, mounts=binds, tmpfs=["/scratch"])
    assert (root / "run/made").is_dir()
    assert not (root / "run/made/inner").exists()  # it lies in another mount
    assert not (root / "dev").exists()
    assert list((root / "scratch").iterdir()) == []
    assert (root / "made.txt").read_bytes() == b""
    assert found.places["/var/run/made"] == "/run/made"
    assert found.places["/etc/resolv.conf"] == "/etc/resolv.conf"


@pytest.mark.parametrize(
    ("bind", "text"),
    [
        (Bind("/x", "/file"), "a folder cannot be mounted at /file: /file is no folder"),
        (Bind("/x", "/file/y"), "/file is no folder"),
        (Bind("/x", "/etc", folder=False), "a file cannot be mounted at /etc: /etc is a folder"),
        (Bind("/x", "/file/y", folder=False), "/file is no folder"),
        (Bind("/x", "/up", folder=False), "is the root"),
    ],
)
def test_mount_points_of_the_wrong_kind(root: Path, bind: Bind, text: str) -> None:
    (root / "file").touch()
    (root / "up").symlink_to("..")
    with pytest.raises(UsageError, match=text):
        ready(root, mounts=[bind])


@pytest.mark.parametrize("target", ["x", "", "/", "/a/..", "/proc", "/proc/1/x", "/sys/fs"])
def test_targets_that_are_refused(root: Path, target: str) -> None:
    with pytest.raises(UsageError, match="mount target"):
        ready(root, mounts=[Bind("/x", target)])


def test_a_job_can_carry_the_answer(root: Path) -> None:
    (root / "etc/passwd").write_text("app:x:5:6::/h:/bin/sh\n")
    (root / "etc/group").write_text("g:x:9:app\n")
    found = ready(root, user="app", cwd="/w", volumes=["/v"])
    assert found.user == User(5, 6, (9,), "/h", "app")
    assert Prepared.from_json(found.to_json()) == found

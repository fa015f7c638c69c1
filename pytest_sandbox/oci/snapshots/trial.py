"""A snapshotter tried for real: jobs of the supervisor on a throwaway folder of the store.

Two small layers are made, shown as one tree, and written to as a sandbox would. What is asked:
is everything there, does everything work, is the stored layer untouched, and are deletions still
deletions when the tree is mounted again and when the upper folder has become a layer.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.errors import RuntimeUnavailable
from pytest_sandbox.oci import linux
from pytest_sandbox.oci.snapshots.base import SnapshotterFailed, find_snapshotter
from pytest_sandbox.oci.snapshots.digests import tree_digest
from pytest_sandbox.oci.snapshots.overlay import reopen

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_sandbox.oci.snapshots.base import Snapshotter
    from pytest_sandbox.oci.supervisor import Call

_BIN: Final = "/usr/bin:/bin:/usr/sbin:/sbin"
_OTHER: Final = 1
"""An id of the sandbox that is not its root."""


class TrialFailed(SnapshotterFailed):
    """Something does not work; `problem` is the stable id of the diagnosis."""

    def __init__(self, what: str, *, problem: str = "", next_step: str = "") -> None:
        super().__init__(what, next_step=next_step)
        self.problem = problem


def build(call: Call) -> None:
    """Job (mapped): make the layers in the folder fds[0], and for `copies` one whole tree."""
    os.fchdir(call.fds[0])
    os.umask(0o022)
    for name in ("low", "top", "upper", "work"):
        Path(name).mkdir()
    low, top = Path("low"), Path("low" if call.args["whole"] else "top")
    for name in ("append", "truncate", "mode", "old", "gone", "owner"):
        (low / name).write_text(f"{name} of the layer\n")
    for name in ("folder", "emptied", "replaced"):
        (low / name).mkdir()
        (low / name / "inner").write_text("inner\n")
    (top / "second").write_text("of the second layer\n")
    (low / "link").symlink_to("append")
    os.link(low / "append", low / "twin")
    os.setxattr(low / "append", "user.sandbox", b"kept")
    if program := shutil.which("id", path=_BIN):
        shutil.copyfile(program, low / "id")
        os.chown(low / "id", _OTHER, _OTHER)
        (low / "id").chmod(0o4755)
    low.chmod(0o751)
    top.chmod(0o751)


def prepare(call: Call) -> None:
    """Job (mapped): the snapshotter's first step on the folder fds[0]."""
    snapshotter = find_snapshotter(call.args["name"])
    lowers = [_open(call.fds[0], name) for name in _layers(snapshotter)]
    snapshotter.prepare(lowers, _open(call.fds[0], "upper"))


def attempt(call: Call) -> dict[str, Any]:
    """Job (host): mount, write, mount again; the answer is `{"problem": id, "failed": text}`,
    both empty if all went well.
    """
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount("none", "/", "", linux.MS_REC | linux.MS_PRIVATE)
    target = Path(call.room, f"trial-{os.getpid()}")
    target.mkdir(mode=0o755)
    try:
        _attempt(call, find_snapshotter(call.args["name"]), str(target))
    except TrialFailed as wrong:
        return {"failed": wrong.what, "problem": wrong.problem, "next_step": wrong.next_step}
    except RuntimeUnavailable as wrong:
        return {"failed": wrong.what, "problem": "", "next_step": wrong.next_step}
    except OSError as wrong:
        return {"failed": f"mount: {wrong.strerror or wrong}", "problem": "", "next_step": ""}
    finally:
        with contextlib.suppress(OSError):
            linux.umount(str(target), linux.MNT_DETACH)
        target.rmdir()
    return {"failed": "", "problem": "", "next_step": ""}


def _attempt(call: Call, snapshotter: Snapshotter, target: str) -> None:
    place = call.fds[0]
    lowers = [_open(place, name) for name in _layers(snapshotter)]
    upper, work = _open(place, "upper"), _open(place, "work")
    before = _as_sandbox(call, lambda: _digests(lowers))
    snapshotter.mount(lowers, upper, work, target, read_only=not snapshotter.writable)
    if snapshotter.writable:
        _as_sandbox(call, lambda: _exercise(target))
    else:
        _as_sandbox(call, lambda: _exercise_read_only(target))
    snapshotter.unmount(target, work)
    snapshotter.settle(upper)
    if snapshotter.writable:
        snapshotter.mount(lowers, upper, work, target, volatile=True)
        _as_sandbox(call, lambda: _look_again(target, "mounted again"))
        snapshotter.unmount(target, work)
        snapshotter.settle(upper)
        stack = [*lowers, upper] if snapshotter.layered else [upper]
        snapshotter.mount(stack, None, None, target)
        _as_sandbox(call, lambda: _look_again(target, "as a layer"))
        snapshotter.unmount(target)
    if _as_sandbox(call, lambda: _digests(lowers)) != before:
        msg = "writing in the sandbox has changed the stored layer"
        raise TrialFailed(msg, next_step="use the snapshotter copy")


def _layers(snapshotter: Snapshotter) -> list[str]:
    return ["low", "top"] if snapshotter.layered else ["low"]


def _open(folder: int, name: str) -> int:
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(name, flags, dir_fd=folder)


def _digests(folders: list[int]) -> list[str]:
    return [tree_digest(folder) for folder in folders]


def _as_sandbox(call: Call, work: Callable[[], Any]) -> Any:
    """Do `work` in a child that has the ids of sandboxes; raises TrialFailed for its errors."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        answer: dict[str, Any] = {"failed": "no answer", "problem": "", "next_step": ""}
        try:
            call.enter_ids()
            os.umask(0o022)
            answer = {"done": work()}
        except TrialFailed as wrong:
            answer = {"failed": wrong.what, "problem": wrong.problem, "next_step": wrong.next_step}
        except BaseException as wrong:
            answer = {"failed": f"{wrong}", "problem": "", "next_step": ""}
        finally:
            os.write(writer, json.dumps(answer).encode())
            sys.stderr.flush()
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        data = file.read()
    os.waitpid(child, 0)
    answer = json.loads(data) if data else {"failed": "it ended", "problem": "", "next_step": ""}
    if "failed" in answer:
        raise TrialFailed(
            answer["failed"], problem=answer["problem"], next_step=answer["next_step"]
        )
    return answer["done"]


def _exercise(target: str) -> None:
    """Write in the tree in every way that leaves a mark."""
    os.chdir(target)
    with Path("append").open("a") as file:
        file.write("more\n")
    os.truncate("truncate", 3)
    Path("mode").chmod(0o600)
    Path("old").rename("new")
    Path("gone").unlink()
    os.chown("owner", _OTHER, _OTHER)
    os.setxattr("owner", "user.sandbox", b"set")
    (Path("emptied") / "inner").unlink()
    shutil.rmtree("replaced")
    Path("replaced").mkdir()
    try:
        Path("folder").rename("moved")
    except OSError as wrong:
        # overlayfs answers so for folders of layers; programs then copy, as between file systems.
        if wrong.errno != errno.EXDEV:
            raise
        shutil.copytree("folder", "moved")
        shutil.rmtree("folder")
    Path("made").write_text("new\n")
    os.mkfifo("pipe")
    _look()
    _setuid()


def _exercise_read_only(target: str) -> None:
    os.chdir(target)
    _is("append", "append of the layer\n")
    for path in ("append", "new file"):
        try:
            Path(path).write_text("x")
        except OSError as wrong:
            if wrong.errno == errno.EROFS:
                continue
            raise
        msg = f"a read-only root was written to: {path}"
        raise TrialFailed(msg)
    _setuid()


def _look_again(target: str, when: str) -> None:
    os.chdir(target)
    try:
        _look()
    except TrialFailed as wrong:
        msg = f"{when}: {wrong.what}"
        raise TrialFailed(msg, problem=wrong.problem, next_step=wrong.next_step) from None


def _look() -> None:
    """Is everything as `_exercise` has left it?"""
    _is("append", "append of the layer\nmore\n")
    _is("truncate", "tru")
    _is("new", "old of the layer\n")
    _is("second", "of the second layer\n")
    _is("moved/inner", "inner\n")
    _is("made", "new\n")
    _is("link", "append of the layer\nmore\n")
    for path in ("old", "gone", "folder", "emptied/inner", "replaced/inner"):
        if os.path.lexists(path):
            msg = f"{path} was removed and is still there"
            raise TrialFailed(msg)
    _want("the mode of a file", stat.S_IMODE(Path("mode").stat().st_mode), 0o600)
    _want("the mode of the root folder", stat.S_IMODE(Path().stat().st_mode), 0o751)
    _want("the owner of a file", Path("owner").stat().st_uid, _OTHER)
    _want("an extended attribute", os.getxattr("owner", "user.sandbox"), b"set")
    _want("an extended attribute of a layer", os.getxattr("append", "user.sandbox"), b"kept")
    _want("a named pipe", stat.S_ISFIFO(Path("pipe").stat().st_mode), True)


def _is(path: str, text: str) -> None:
    _want(path, Path(path).read_text(), text)


def _want(what: str, found: object, expected: object) -> None:
    if found != expected:
        msg = f"{what} is {found!r} and should be {expected!r}"
        raise TrialFailed(msg)


def _setuid() -> None:
    """Run a program of the tree that is setuid to another id, and ask who it is."""
    if not Path("id").exists():
        return
    move = "keep the store on a file system that is mounted without {} (set PYTEST_SANDBOX_DATA)"
    try:
        done = subprocess.run(["./id", "-u"], capture_output=True, check=False, timeout=20)
    except PermissionError:
        what = "programs of the tree cannot be run: the store is on a noexec mount"
        step = move.format("noexec")
        raise TrialFailed(what, problem="store-noexec", next_step=step) from None
    if done.stdout.strip() != str(_OTHER).encode():
        what = (
            "setuid programs of the tree do not change their user: the store is on a nosuid mount"
        )
        raise TrialFailed(what, problem="store-nosuid", next_step=move.format("nosuid"))


def clean(call: Call) -> None:
    """Job (host): remove everything in the folder fds[0]."""
    from pytest_sandbox.oci.snapshots.overlay import empty

    descriptor = reopen(call.fds[0])
    try:
        empty(descriptor)
    finally:
        os.close(descriptor)

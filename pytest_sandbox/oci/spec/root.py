"""What a root file system needs before it starts: the user, the working folder, mount points.

The root belongs to a stranger's image. Each path is walked by hand from the root's descriptor:
links are followed inside the root only, nothing but folders is opened, and what is missing is made.
`prepare` is the job; it runs where the sandbox's ids are mapped, as their root.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pytest_sandbox.errors import InvalidImage, MissingDirectory, UsageError
from pytest_sandbox.oci.linux import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, openat2
from pytest_sandbox.oci.spec import process
from pytest_sandbox.oci.spec.mounts import Bind, check_target, made_by_runtime, under
from pytest_sandbox.oci.spec.users import CONFINED, User, resolve_user

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from pytest_sandbox.oci.config import ImageConfig
    from pytest_sandbox.oci.supervisor.jobs import Call

_LINKS: Final = 40
"""So many links in one path are followed, as the kernel does."""
ACCOUNT_FILES: Final = ("/etc/passwd", "/etc/group")


class Prepared(NamedTuple):
    """What was found and made in a root.

    `places` is each mount point -> where it really is in the root, without links; `missing` names
    the account files that the image lacks, or has as something that cannot be read (mount points
    for them are there now); `created` are the paths that were made, outer ones first: they are not
    the sandbox's changes.
    """

    user: User
    places: Mapping[str, str]
    missing: tuple[str, ...] = ()
    created: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As a job returns it."""
        return {
            "user": self.user.to_json(),
            "places": dict(self.places),
            "missing": list(self.missing),
            "created": list(self.created),
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Prepared:
        """The opposite of `to_json`."""
        missing, created = tuple(fields["missing"]), tuple(fields["created"])
        return cls(User.from_json(fields["user"]), dict(fields["places"]), missing, created)


def root_request(
    config: ImageConfig,
    *,
    user: str = "",
    cwd: str = "",
    mounts: Sequence[Bind] = (),
    tmpfs: Iterable[str] = (),
) -> dict[str, Any]:
    """The arguments of the job `prepare`, for the same image config, overrides and mounts that
    `generate` gets (the engine's own files, like /etc/hosts, among the mounts). Raises UsageError
    and InvalidImage.
    """
    folders = process.volumes(config)
    folders += [check_target(bind.target) for bind in mounts if bind.folder]
    folders += [check_target(path) for path in tmpfs]
    files = [check_target(bind.target) for bind in mounts if not bind.folder]
    targets = [*folders[len(process.volumes(config)) :], *files]
    return {
        "user": user or config.user,
        "cwd": process.working_dir(config, cwd),
        "folders": [p for p in dict.fromkeys(folders) if not made_by_runtime(p, targets)],
        "files": [p for p in dict.fromkeys(files) if not made_by_runtime(p, targets)],
        "covered": targets,
    }


def prepare(call: Call) -> dict[str, Any]:
    """Job: `prepare_root` on the first descriptor with the arguments of `root_request`."""
    return prepare_root(call.fds[0], call.args).to_json()


def prepare_root(
    root: int, request: Mapping[str, Any], owner: tuple[int, int] | None = None
) -> Prepared:
    """Find the user and make what is missing below `root`, a descriptor of the root's folder.

    New folders belong to the sandbox's root (0755), new files too (0644, empty); the folder around
    a new one keeps its time. Who is not that root, but may do what it may, says with `owner` (uid,
    gid) who it is. Raises UnknownUser; MissingDirectory for a working folder that is
    something else, or lies in /proc; UsageError for a mount point of the wrong kind; InvalidImage
    for links without an end.
    """
    walk = _Walk(root, owner)
    places: dict[str, str] = {}
    for path in request["folders"]:
        try:
            places[path] = walk.folder(path)
        except NotADirectoryError as error:
            msg = f"a folder cannot be mounted at {path}: {error.strerror}"
            raise UsageError(msg, next_step="choose another place") from error
    for path in request["files"]:
        try:
            places[path] = walk.file(path)
        except (NotADirectoryError, IsADirectoryError) as error:
            msg = f"a file cannot be mounted at {path}: {error.strerror}"
            raise UsageError(msg, next_step="choose another place") from error
    cwd = request["cwd"]
    if not made_by_runtime(cwd, request["covered"]) and not under(cwd, request["covered"]):
        _working_folder(walk, cwd)
    elif cwd.startswith("/proc/"):
        _refuse_proc(cwd)
    missing = tuple(path for path in ACCOUNT_FILES if path not in places and walk.lacks(path))
    for path in missing:
        places[path] = walk.file(path)
    return Prepared(resolve_user(root, request["user"]), places, missing, tuple(walk.created))


def _working_folder(walk: _Walk, cwd: str) -> None:
    try:
        real = walk.folder(cwd, make=lambda place: not place.startswith("/proc/"))
    except NotADirectoryError as error:
        msg = f"the working folder {cwd} cannot be: {error.strerror}"
        raise MissingDirectory(msg, next_step="choose a folder") from error
    if real.startswith("/proc/"):
        _refuse_proc(cwd)


def _refuse_proc(cwd: str) -> None:
    # /proc/self/fd/N as a working folder is how images broke out of runc (CVE-2024-21626).
    msg = f"the working folder {cwd} lies in /proc"
    raise MissingDirectory(msg, next_step="choose a folder outside of it")


class _Walk:
    """Walks and makes paths below one root."""

    def __init__(self, root: int, owner: tuple[int, int] | None) -> None:
        self._root = root
        self._owner = owner
        self.created: list[str] = []

    def _open(self, parts: Sequence[str]) -> int:
        """A folder without any link in its path, as an O_PATH descriptor."""
        flags = os.O_PATH | os.O_DIRECTORY
        how = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS
        return openat2(self._root, "/".join(parts) or ".", flags, resolve=how)

    def lacks(self, path: str) -> bool:
        """Whether no file can be read at `path`: it is missing, a link to nowhere, or something
        (a FIFO) that would keep its reader waiting.
        """
        try:
            found = openat2(self._root, path.lstrip("/"), os.O_PATH, resolve=CONFINED)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        try:
            mode = os.fstat(found).st_mode
        finally:
            os.close(found)
        return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))

    def folder(self, path: str, make: Callable[[str], bool] = lambda _: True) -> str:
        """The real path of the folder, made where it is missing. Raises NotADirectoryError."""
        return self._walk(path, file=False, make=make)

    def file(self, path: str) -> str:
        """The real path of a file, or of anything that is no folder; made where it is missing.
        Raises IsADirectoryError and NotADirectoryError.
        """
        return self._walk(path, file=True, make=lambda _: True)

    def _walk(self, path: str, *, file: bool, make: Callable[[str], bool]) -> str:
        todo = [part for part in path.split("/") if part not in ("", ".")][::-1]
        real: list[str] = []
        links = 0
        while todo:
            name = todo.pop()
            if name == "..":
                del real[-1:]
                continue
            place = "/" + "/".join([*real, name])
            last = file and not todo
            parent = self._open(real)
            try:
                mode = self._mode(parent, name)
                if stat.S_ISLNK(mode):
                    links += 1
                    if links > _LINKS:
                        msg = f"{path} of the image is a link without an end"
                        raise InvalidImage(msg, next_step="the image's author has to mend it")
                    target = os.readlink(name, dir_fd=parent)
                    if target.startswith("/"):
                        real = []
                    todo += [part for part in target.split("/") if part not in ("", ".")][::-1]
                    continue
                if mode == 0 and make(place):
                    self._make(parent, name, place, file=last)
                elif last and stat.S_ISDIR(mode):
                    raise IsADirectoryError(errno.EISDIR, f"{place} is a folder", path)
                elif mode and not last and not stat.S_ISDIR(mode):
                    raise NotADirectoryError(errno.ENOTDIR, f"{place} is no folder", path)
                elif mode == 0:
                    return "/" + "/".join([*real, name, *reversed(todo)])
            finally:
                os.close(parent)
            real.append(name)
        if file and not real:
            raise IsADirectoryError(errno.EISDIR, f"{path} is the root", path)
        return "/" + "/".join(real)

    @staticmethod
    def _mode(parent: int, name: str) -> int:
        """The mode of what is there; 0 for nothing."""
        try:
            return os.lstat(name, dir_fd=parent).st_mode
        except FileNotFoundError:
            return 0

    def _make(self, parent: int, name: str, place: str, *, file: bool) -> None:
        before = os.fstat(parent)
        if file:
            flags = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_WRONLY | os.O_CLOEXEC
            made = os.open(name, flags, 0o644, dir_fd=parent)
            os.fchmod(made, 0o644)
            os.close(made)
        else:
            os.mkdir(name, 0o755, dir_fd=parent)
            os.chmod(name, 0o755, dir_fd=parent)
        if self._owner is not None:
            os.chown(name, *self._owner, dir_fd=parent, follow_symlinks=False)
        with contextlib.suppress(OSError):  # the time of the folder around it is a nicety
            times = (before.st_atime_ns, before.st_mtime_ns)
            os.utime(f"/proc/self/fd/{parent}", ns=times)
        self.created.append(place)

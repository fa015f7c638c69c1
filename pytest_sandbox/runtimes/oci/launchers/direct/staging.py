"""In a blank: the system's mounts, made before it is known which root they will be in.

They are made below a stage (a tmpfs of the blank's own mount namespace) and moved into the root
later. The stage holds nothing of an image, so plain paths are safe here.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.oci import linux

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_sandbox.runtimes.oci.launchers.direct.profile import Profile

FILES: Final = "files"
"""The folder of the stage for small files of ours, like /etc/hosts."""
_FLAGS: Final = {
    "ro": linux.MS_RDONLY,
    "nosuid": linux.MS_NOSUID,
    "nodev": linux.MS_NODEV,
    "noexec": linux.MS_NOEXEC,
    "relatime": linux.MS_RELATIME,
    "strictatime": linux.MS_STRICTATIME,
    "rw": 0,
}
_DEVICES: Final = ("null", "zero", "full", "random", "urandom", "tty")
_LINKS: Final = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "core": "/proc/kcore",
    "ptmx": "pts/ptmx",
}
_QUIET: Final = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC


def stage(place: str, profile: Profile) -> None:
    """Make all of it below `place`, where a tmpfs is put. Raises OSError."""
    flags = linux.MS_NOSUID | linux.MS_NODEV
    linux.mount("tmpfs", place, "tmpfs", flags, "mode=0755,size=1m")
    for name in ("root", FILES):
        os.mkdir(f"{place}/{name}", 0o755)  # noqa: PTH102
    # The sandbox may write them, and fill what they lie on.
    linux.mount("tmpfs", f"{place}/{FILES}", "tmpfs", flags, "mode=0755,size=1m,nr_inodes=64")
    for entry in profile.mounts:
        _mount(place, entry, profile)
    for name, value in profile.sysctl.items():
        path = f"{place}/proc/sys/{name.replace('.', '/')}"
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        os.write(descriptor, value.encode())
        os.close(descriptor)
    for path in profile.readonly:
        _read_only(place + path)
    for path in profile.masked:
        _mask(place, place + path)


def tops(profile: Profile) -> list[str]:
    """The mounts that are moved into the root; what lies in them goes along."""
    found: list[str] = []
    for entry in profile.mounts:
        path = entry["destination"]
        if not any(path.startswith(f"{top}/") for top in found):
            found.append(path)
    return found


def split(options: list[str]) -> tuple[int, str]:
    """The flags of mount(2), and what is left for the file system."""
    flags = sum(_FLAGS[option] for option in options if option in _FLAGS)
    return flags, ",".join(option for option in options if option not in _FLAGS)


def _mount(place: str, entry: Mapping[str, Any], profile: Profile) -> None:
    target, kind = place + entry["destination"], entry["type"]
    with contextlib.suppress(FileExistsError):
        os.mkdir(target, 0o755)  # noqa: PTH102
    if kind == "cgroup":
        _control_groups(target, profile)
        return
    if kind == "bind":
        _host_sys(target)
        return
    flags, data = split([one for one in entry["options"] if one != "newinstance"])
    if kind == "devpts":
        data = f"newinstance,{data}"
    linux.mount(entry["source"], target, kind, flags, data)
    if entry["destination"] == "/dev":
        _devices(target)


def _host_sys(target: str) -> None:
    """The host's /sys, read-only all the way down."""
    linux.mount("/sys", target, "", linux.MS_BIND | linux.MS_REC)
    opened = os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    wanted = linux.MOUNT_ATTR_RDONLY | linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NODEV
    wanted |= linux.MOUNT_ATTR_NOEXEC
    linux.mount_setattr(opened, flags=linux.AT_EMPTY_PATH | linux.AT_RECURSIVE, set=wanted)
    os.close(opened)


def _devices(folder: str) -> None:
    """The host's own harmless devices: a user namespace cannot make any."""
    for name in _DEVICES:
        target = f"{folder}/{name}"
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666))
        linux.mount(f"/dev/{name}", target, "", linux.MS_BIND)
    for name, target in _LINKS.items():
        os.symlink(target, f"{folder}/{name}")  # noqa: PTH211


def _control_groups(target: str, profile: Profile) -> None:
    if profile.unified == ".":
        if os.path.ismount(target):
            # The host's own, which came with its /sys: no file system is mounted onto itself.
            linux.mount("tmpfs", target, "tmpfs", _QUIET | linux.MS_RDONLY, "size=4k")
        linux.mount("cgroup2", target, "cgroup2", _QUIET | linux.MS_RDONLY)
        return
    linux.mount("tmpfs", target, "tmpfs", _QUIET, "mode=0755,size=64k")
    for name, options in profile.hierarchies:
        folder = f"{target}/{name}"
        os.mkdir(folder, 0o755)  # noqa: PTH102
        linux.mount("cgroup", folder, "cgroup", _QUIET | linux.MS_RDONLY, options)
        for alias in options.split(","):
            if alias != name:
                os.symlink(name, f"{target}/{alias}")  # noqa: PTH211
    if profile.unified:
        os.mkdir(f"{target}/unified", 0o755)  # noqa: PTH102
        linux.mount("cgroup2", f"{target}/unified", "cgroup2", _QUIET | linux.MS_RDONLY)
    linux.mount("tmpfs", target, "", linux.MS_REMOUNT | linux.MS_BIND | _QUIET | linux.MS_RDONLY)


def _read_only(path: str) -> None:
    try:
        linux.mount(path, path, "", linux.MS_BIND | linux.MS_REC)
    except FileNotFoundError:
        return
    # A remount in a user namespace has to repeat what is locked.
    flags = linux.MS_BIND | linux.MS_REMOUNT | linux.MS_RDONLY | _QUIET
    linux.mount(path, path, "", flags)


def _mask(place: str, path: str) -> None:
    if os.path.isdir(path):  # noqa: PTH112
        linux.mount("tmpfs", path, "tmpfs", linux.MS_RDONLY | _QUIET, "size=0k,nr_inodes=2")
    elif os.path.exists(path):  # noqa: PTH110
        linux.mount(f"{place}/dev/null", path, "", linux.MS_BIND)


__all__ = ["split", "stage", "tops"]

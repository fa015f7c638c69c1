"""Extended attributes as layers carry them."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

_UNSUPPORTED: Final = frozenset({errno.ENOTSUP, errno.EPERM})
_NOT_OURS: Final = frozenset({"security.selinux", "system.nfs4_acl"})
DEFAULT_ACL: Final = "system.posix_acl_default"


def dropped(name: str) -> bool:
    """Whether layers neither bring nor keep this attribute: SELinux's label and overlayfs's own."""
    return name in _NOT_OURS or name.partition(".")[2].startswith("overlay.")


def read(target: int | str | bytes) -> dict[str, bytes]:
    """The attributes that a layer keeps, sorted by name; links are not followed."""
    follow = isinstance(target, int)
    try:
        names = os.listxattr(target, follow_symlinks=follow)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return {}
        raise
    return {
        name: os.getxattr(target, name, follow_symlinks=follow)
        for name in sorted(names)
        if not dropped(name)
    }


def write(target: int | bytes, wanted: Mapping[str, bytes]) -> str:
    """Set attributes; links are not followed. The name of one that could not be set, for want of
    support or of the right, or nothing; others raise OSError.
    """
    follow = isinstance(target, int)
    failed = ""
    for name, value in wanted.items():
        if dropped(name):
            continue
        try:
            os.setxattr(target, name, value, follow_symlinks=follow)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            failed = name
    return failed


def clear(target: int, keep: Mapping[str, bytes]) -> None:
    """Remove every attribute that a layer could have set, but for those in `keep`."""
    try:
        names = os.listxattr(target)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return
        raise
    for name in names:
        if name not in keep and not dropped(name):
            os.removexattr(target, name)


def split(target: int | bytes) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """The attributes that a layer keeps, and (by the last part of their names) overlayfs's own."""
    follow = isinstance(target, int)
    try:
        names = os.listxattr(target, follow_symlinks=follow)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return {}, {}
        raise
    kept: dict[str, bytes] = {}
    overlay: dict[str, bytes] = {}
    for name in sorted(names):
        mark = name.removeprefix("user.overlay.").removeprefix("trusted.overlay.")
        if mark != name:
            overlay[mark] = os.getxattr(target, name, follow_symlinks=follow)
        elif not dropped(name):
            kept[name] = os.getxattr(target, name, follow_symlinks=follow)
    return kept, overlay


def is_opaque(descriptor: int) -> bool:
    """Whether an overlay's upper folder hides what lies below it."""
    return split(descriptor)[1].get("opaque") == b"y"

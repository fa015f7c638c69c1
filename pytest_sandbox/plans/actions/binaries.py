"""install_binaries: what was unpacked or built goes into the staging folder."""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING, Final

from pytest_sandbox.plans.composites import outputs_of
from pytest_sandbox.plans.model import Command, Operation

if TYPE_CHECKING:
    from pytest_sandbox.plans.actions.context import Reader

_COPY: Final = """set -eu
staging=$1; shift
while [ $# -gt 0 ]; do
  source=$1 dest=$2 mode=$3; shift 3
  if [ ! -f "$source" ]; then echo "$source is not there" >&2; exit 66; fi
  mkdir -p -- "$staging/$(dirname -- "$dest")"
  cp -p -- "$source" "$staging/$dest"
  if [ -n "$mode" ]; then chmod "$mode" -- "$staging/$dest"; fi
done
"""
"""STAGING (SOURCE DEST MODE)...: copy each file; symlinks are followed."""

_COPY_ALL: Final = """set -eu
staging=$1; shift
for entry in * .[!.]* ..?*; do
  if [ "$entry" = .install ]; then continue; fi
  if [ -e "$entry" ] || [ -L "$entry" ]; then cp -a "./$entry" "$staging/"; fi
done
for dest do
  if [ ! -e "$staging/$dest" ]; then echo "$dest is not there" >&2; exit 66; fi
done
"""
"""STAGING DEST...: copy the whole work folder, then look for what was promised."""


def install_binaries(reader: Reader) -> tuple[Operation, ...]:
    """One file at a time below bin/, or with `install_mode = "directory"` the whole work folder."""
    layout = reader.context.layout
    items = outputs_of(reader.params)
    key = "outputs" if "outputs" in reader.params else "binaries"
    if not items:
        raise reader.fault(key, "a list of files is required")
    mode = reader.text("install_mode") or "binaries"
    if mode not in {"binaries", "directory"}:
        raise reader.fault(key="install_mode", what=f"{mode!r} is neither binaries nor directory")
    whole = mode == "directory"
    pairs = [_pair(item, key, reader, whole=whole) for item in items]
    executables = {reader.relative(name, "executables") for name in reader.strings("executables")}
    for source, dest in pairs:
        is_command = dest.startswith(("bin/", "sbin/")) or "/" not in dest
        if is_command or {source, dest} & executables:
            reader.context.commands.append(dest)
    if whole:
        argv = ("/bin/sh", "-c", _COPY_ALL, "install_binaries", layout.staging)
        return (Command(argv=(*argv, *(dest for _, dest in pairs)), cwd=layout.work),)
    words: list[str] = []
    for source, dest in pairs:
        runs = dest.startswith("bin/") or source in executables or dest in executables
        words += [source, dest, "0755" if runs else ""]
    argv = ("/bin/sh", "-c", _COPY, "install_binaries", layout.staging)
    return (Command(argv=(*argv, *words), cwd=layout.work),)


def _pair(item: object, key: str, reader: Reader, *, whole: bool) -> tuple[str, str]:
    """Source below the work folder and destination below the staging folder."""
    if isinstance(item, str):
        source = reader.relative(item, key)
        return source, source if whole else f"bin/{posixpath.basename(source)}"
    if isinstance(item, dict):
        source = reader.relative(item.get("src"), f"{key}.src")
        dest = item.get("dest") or f"bin/{posixpath.basename(source)}"
        return source, reader.relative(dest, f"{key}.dest")
    raise reader.fault(key, f"expected paths or tables with src and dest, got {item!r}")

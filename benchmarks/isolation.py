"""What a sandbox is shut off from, seen from inside: so that no figure is bought with isolation."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
SCRIPT = r"""
for name in cgroup ipc mnt net pid user uts; do
    echo "ns-$name $(readlink /proc/self/ns/$name)"
done
grep -E '^(CapBnd|CapEff|CapPrm|Seccomp|Uid):' /proc/self/status | tr -d : | tr -s '\t' ' '
echo "ids $(wc -l </proc/self/uid_map) $(head -n 1 /proc/self/uid_map | tr -s ' ')"
echo "last-id $(awk '{n += $3} END {print n}' /proc/self/uid_map 2>/dev/null)"
for path in /proc/kcore /proc/keys /proc/timer_list /sys/firmware; do
    if [ -d $path ]; then inside=$(ls -A $path | wc -l); else inside=$(head -c 1 $path | wc -c); fi
    echo "masked-$path $inside"
done 2>/dev/null
for path in /proc/sys /proc/irq /sys /sys/fs/cgroup; do
    grep -qE "^[^ ]+ $path [^ ]+ ro," /proc/self/mounts && echo "read-only-$path 1"
done
for file in memory/memory.limit_in_bytes memory.max pids/pids.max pids.max \
    cpu/cpu.cfs_quota_us cpu,cpuacct/cpu.cfs_quota_us cpu.max; do
    [ -r /sys/fs/cgroup/$file ] && echo "limit-$file $(cat /sys/fs/cgroup/$file)"
done
mount -t tmpfs none /mnt 2>/dev/null && echo "may-mount 1"
mknod /tmp/null c 1 3 2>/dev/null && echo "may-mknod 1"
echo "nofile $(ulimit -n)"
echo "links $(ls /sys/class/net 2>/dev/null | tr '\n' ' ')"
echo "first $(cat /proc/1/comm)"
exit 0
"""
"""Written for a plain sh and Debian's essential packages."""


def facts(text: str) -> dict[str, str]:
    """The script's words."""
    pairs = (line.partition(" ") for line in text.splitlines())
    return {name: value.strip() for name, _, value in pairs}


def held(found: Mapping[str, str]) -> set[str]:
    """The isolations that the facts show."""
    shown = set()
    for name in NAMESPACES:
        ours = os.readlink(f"/proc/self/ns/{name}")  # noqa: PTH115
        if found.get(f"ns-{name}", ours) != ours:
            shown.add(f"a {name} namespace")
    if found.get("Seccomp") == "2":
        shown.add("a seccomp filter")
    for name in ("CapBnd", "CapEff", "CapPrm"):
        if int(found.get(name, "0"), 16).bit_count() <= 14 and name in found:
            shown.add(f"at most 14 capabilities ({name})")
    ids = found.get("ids", "").split()
    if len(ids) == 4 and ids[2] != "0":
        shown.add("a root that is not the host's")
    if int(found.get("last-id") or "0") >= 65536:
        shown.add("a full range of ids")
    shown |= {f"no {word}" for word in ("mount", "mknod") if f"may-{word}" not in found}
    return shown | _paths(found)


def _paths(found: Mapping[str, str]) -> set[str]:
    shown = set()
    for name, value in found.items():
        kind, _, what = name.partition("-")
        if kind == "masked" and value == "0":
            shown.add(f"{what} masked")
        if name.startswith("read-only-"):
            shown.add(f"{name.removeprefix('read-only-')} read-only")
        if kind == "limit" and _limited(value):
            shown.add(f"a limit in {Path(what).name}")
    return shown


def _limited(value: str) -> bool:
    first = value.partition(" ")[0]
    return first.isdigit() and int(first) < 1 << 60

"""Namespaces tried in a process of their own: a user namespace, its ids, a mount, a /proc.

What succeeds is really done; settings of the kernel are read only to explain a failure.
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
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pytest_sandbox.oci.findings import Finding, Lacking, install
from pytest_sandbox.oci.ids import IdSpace, NoIds, Range
from pytest_sandbox.oci.supervisor.client import write_maps

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_WAIT: Final = 20.0
_PROGRAM: Final = r"""
import ctypes, json, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def step(name, result):
    if result != 0:
        print(json.dumps({"failed": name, "errno": ctypes.get_errno()}), flush=True)
        os._exit(0)
step("userns", libc.unshare(0x10000000))
print(json.dumps({"ready": os.getpid()}), flush=True)
sys.stdin.readline()
try:
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    os.setgroups([])
except OSError as wrong:
    print(json.dumps({"failed": "ids", "errno": wrong.errno}), flush=True)
    os._exit(0)
step("mountns", libc.unshare(0x00020000 | 0x20000000))
step("mount", libc.mount(b"none", b"/", None, ctypes.c_ulong((1 << 18) | 16384), None))
step("mount", libc.mount(b"tmpfs", b"/tmp", b"tmpfs", ctypes.c_ulong(0), None))
child = os.fork()
if child == 0:
    os.mkdir("/tmp/proc")
    step("proc", libc.mount(b"proc", b"/tmp/proc", b"proc", ctypes.c_ulong(0), None))
    print(json.dumps({"done": True}), flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""


def probe_namespaces(ids: IdSpace) -> Finding:
    """Make a user namespace with `ids`, be its root, mount a tmpfs and a /proc in it."""
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            first = _read(child.stdout.readline())
            if "ready" not in first:
                return explain(first)
            try:
                _write_maps(child.pid, ids)
            except NoIds as refused:
                return refused_map(refused)
            except OSError as wrong:
                return _no_map(wrong)
            with contextlib.suppress(BrokenPipeError):
                child.stdin.write(b"go\n")
                child.stdin.flush()
            last = _read(child.stdout.readline())
            if "done" in last:
                first_id = ids.uids[-1].outside
                what = (
                    f"user namespaces work, with {ids.size} ids from {first_id} on ({ids.source})"
                )
                return Finding("userns", True, what)
            return explain(last)
        finally:
            child.kill()
            child.wait(_WAIT)


def _read(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {"failed": "userns", "errno": errno.EIO}


def _write_maps(pid: int, ids: IdSpace) -> None:
    if ids.rootless:
        write_maps(pid, ids)
        return
    for name, ranges in (("uid_map", ids.uids), ("gid_map", ids.gids)):
        text = "".join("{} {} {}\n".format(*Range(*one)) for one in ranges)
        Path(f"/proc/{pid}/{name}").write_text(text, encoding="ascii")


def explain(told: Mapping[str, Any], proc: Path = Path("/proc")) -> Finding:
    """The finding for a step that failed: `failed` is its name, `errno` its error."""
    failure = _Failure(str(told.get("failed")), int(told.get("errno", errno.EIO)), proc)
    why = os.strerror(failure.number)
    if failure.step == "proc":
        what = f"/proc cannot be mounted in a sandbox ({why}): a container around us masks its own"
        cure = "start the outer container with --security-opt systempaths=unconfined"
        return Finding("masked-proc", False, what, cure, fatal=True)
    for problem, holds, text, cure in _CAUSES:
        if holds(failure):
            what = f"user namespaces cannot be used ({why}): {text}"
            return Finding(problem, False, what, cure, fatal=True)
    what = f"user namespaces cannot be used ({why} at {failure.step}): something forbids them"
    cure = "allow them in the security policy of the host or of the container around us"
    return Finding("userns-blocked", False, what, cure, fatal=True)


def _value(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


class _Failure(NamedTuple):
    step: str
    number: int
    proc: Path

    @property
    def refused(self) -> bool:
        return self.number in {errno.EPERM, errno.EACCES}

    def setting(self, name: str) -> str:
        return _value(self.proc / "sys" / name)


def _disabled(failure: _Failure) -> bool:
    used_up = failure.number in {errno.ENOSPC, errno.EUSERS}
    off = failure.setting("user/max_user_namespaces") == "0"
    return failure.step == "userns" and (used_up or off)


def _clone_off(failure: _Failure) -> bool:
    off = failure.setting("kernel/unprivileged_userns_clone") == "0"
    return failure.step == "userns" and failure.refused and off


def _apparmor(failure: _Failure) -> bool:
    on = failure.setting("kernel/apparmor_restrict_unprivileged_userns") == "1"
    return failure.refused and on and os.geteuid() != 0


def _filtered(failure: _Failure) -> bool:
    return failure.refused and "Seccomp:\t2" in _value(failure.proc / "self/status")


def _chroot(failure: _Failure) -> bool:
    """Mostly no mount is at the root then, or process 1 has another root (if it may be asked)."""
    mounts = _value(failure.proc / "self/mountinfo").splitlines()
    rootless = bool(mounts) and not any(line.split()[4] == "/" for line in mounts)
    with contextlib.suppress(OSError):
        outer = (failure.proc / "1/root").stat()
        rootless |= not os.path.samestat(outer, Path("/").stat())
    return failure.refused and rootless


def _missing(failure: _Failure) -> bool:
    none = failure.number in {errno.EINVAL, errno.ENOSYS}
    return failure.step == "userns" and (none or not (failure.proc / "self/ns/user").exists())


_CAUSES: Final[tuple[tuple[str, Callable[[_Failure], bool], str, str], ...]] = (
    (
        "userns-disabled",
        _disabled,
        "the kernel's number of them is used up or 0",
        "as root: sysctl user.max_user_namespaces=15000",
    ),
    (
        "userns-clone-off",
        _clone_off,
        "they are kept from ordinary users",
        "as root: sysctl kernel.unprivileged_userns_clone=1",
    ),
    (
        "userns-apparmor",
        _apparmor,
        "AppArmor keeps them from programs without a profile",
        "as root: sysctl kernel.apparmor_restrict_unprivileged_userns=0, or run as root",
    ),
    (
        "userns-missing",
        _missing,
        "the kernel has none",
        "use a kernel with CONFIG_USER_NS",
    ),
    (
        "userns-blocked",
        _filtered,
        "a system call filter forbids them, as in a container",
        "start the outer container with --security-opt seccomp=unconfined, or --privileged",
    ),
    (
        "userns-chroot",
        _chroot,
        "this process is in a chroot",
        "run it outside of the chroot, or enter it with pivot_root (systemd-nspawn, unshare)",
    ),
)


def _no_map(wrong: OSError) -> Finding:
    """Root could not write the map: its own namespace lacks the ids, or a policy forbids it."""
    lines = _value(Path("/proc/self/uid_map")).splitlines()
    own = sum(int(line.split()[2]) for line in lines if len(line.split()) == 3)
    if own < 1 << 31:
        what = f"the root of this container has {own} ids, too few for sandboxes ({wrong.strerror})"
        cure = "give /etc/subuid and /etc/subgid an entry `root:1:65536`, or start the outer "
        cure += "container with more ids"
        return Finding("ids-not-mapped", False, what, cure, fatal=True)
    return explain({"failed": "map", "errno": wrong.errno or errno.EIO})


def refused_map(refused: NoIds) -> Finding:
    """Why newuidmap or newgidmap did not write a map."""
    if refused.problem == "no-newuidmap":
        step = install("newuidmap")
        return Finding(refused.problem, False, refused.what, step, fatal=True)
    if "NoNewPrivs:\t1" in _value(Path("/proc/self/status")):
        what = f"{refused.what}: this process may gain no privileges (no_new_privs)"
        step = "run it without no_new_privs (systemd: NoNewPrivileges=no; docker: without "
        step += "--security-opt no-new-privileges)"
        return Finding("newuidmap-no-new-privs", False, what, step, fatal=True)
    for name in ("newuidmap", "newgidmap"):
        program = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/bin:/bin")
        if program is not None and not _privileged(Path(program)):
            what = f"{program} is not setuid root: it cannot write a map"
            step = f"as root: chmod u+s {program} (or: {install('newuidmap')} once more)"
            return Finding("newuidmap-not-setuid", False, what, step, fatal=True)
    return Finding(refused.problem, False, refused.what, refused.next_step, fatal=True)


def _privileged(program: Path) -> bool:
    """Does it run as root, or with file capabilities, where it is?"""
    found = program.stat()
    if os.statvfs(program).f_flag & os.ST_NOSUID:
        return False
    if found.st_mode & stat.S_ISUID and found.st_uid == 0:
        return True
    with contextlib.suppress(OSError):
        return bool(os.getxattr(program, "security.capability"))
    return False


def inside_container(root: Path = Path("/")) -> str:
    """What says that this is inside a container; empty if nothing does. It only explains."""
    for name in ("run/.containerenv", ".dockerenv"):
        if (root / name).exists():
            return f"/{name}"
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        return "KUBERNETES_SERVICE_HOST"
    kind = _value(root / "run/systemd/container")
    return f"/run/systemd/container ({kind})" if kind else ""


def lacking(wrong: Lacking | NoIds) -> Finding:
    """The finding of an exception that carries one."""
    return Finding(wrong.problem, False, wrong.what, wrong.next_step, fatal=True)

"""A seccomp profile of the runtime spec -> the kernel's filter program, by libseccomp.

runc does this at every start (15 ms for three architectures); here it is done once for a profile,
a kernel and a version of the library, and kept in a file.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import secrets
import struct
from functools import cache
from typing import TYPE_CHECKING, Any, Final, NoReturn

from pytest_sandbox.errors import Blame, RuntimeUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_LIBRARY: Final = "libseccomp.so.2"
_ACTIONS: Final = {
    "SCMP_ACT_ALLOW": 0x7FFF0000,
    "SCMP_ACT_ERRNO": 0x00050000,
    "SCMP_ACT_KILL": 0x00000000,
    "SCMP_ACT_KILL_THREAD": 0x00000000,
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
}
_OPERATORS: Final = {
    "SCMP_CMP_NE": 1,
    "SCMP_CMP_LT": 2,
    "SCMP_CMP_LE": 3,
    "SCMP_CMP_EQ": 4,
    "SCMP_CMP_GE": 5,
    "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}
_OPTIMIZE: Final = 8
_BINARY_TREE: Final = 2
_UNKNOWN: Final = -1
"""What libseccomp says of a name that it does not know (__NR_SCMP_ERROR)."""
_EPERM: Final = 1
_CLONE3: Final = 435
_KNOWN: Final = {"defaultAction", "defaultErrnoRet", "architectures", "syscalls"}


class _Compare(ctypes.Structure):
    """struct scmp_arg_cmp."""

    _fields_ = (  # type: ignore[mutable-override]
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    )


def filter_for(profile: Mapping[str, Any], folder: Path) -> bytes:
    """The program for `linux.seccomp` of a runtime spec, from the cache in `folder` or new.

    Raises RuntimeUnavailable without libseccomp, or for what it cannot do.
    """
    text = json.dumps(profile, sort_keys=True, separators=(",", ":"))
    key = f"{os.uname().release}\n{_version()}\n{text}"
    name = hashlib.sha256(key.encode()).hexdigest()
    file = folder / f"{name}.bpf"
    try:
        found = file.read_bytes()
        if found and len(found) % 8 == 0:
            return found
    except OSError:
        pass
    program = compile_filter(profile)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = folder / f".{name}.{secrets.token_hex(6)}"
    fresh.write_bytes(program)
    fresh.replace(file)
    return program


def compile_filter(profile: Mapping[str, Any]) -> bytes:
    """Compile it, an array of struct sock_filter. Raises RuntimeUnavailable.

    A rule with two conditions on the same argument stands for either of them, as runc reads it;
    names that the library does not know are passed over (such a call gets the default action).
    """
    odd = sorted(set(profile) - _KNOWN)
    if odd:
        _refuse(f"linux.seccomp.{odd[0]} is not supported")
    library = _library()
    default = _action(profile["defaultAction"], profile.get("defaultErrnoRet"))
    context = library.seccomp_init(ctypes.c_uint32(default))
    if not context:
        _refuse("libseccomp takes no default action like this")
    filtered = ctypes.c_void_p(context)
    try:
        own = library.seccomp_arch_native()
        for name in profile.get("architectures", ()):
            plain = name.removeprefix("SCMP_ARCH_").lower().encode()
            token = library.seccomp_arch_resolve_name(plain)
            if token == 0:
                _refuse(f"libseccomp does not know the architecture {name}")
            if token != own:
                _done(library.seccomp_arch_add(filtered, ctypes.c_uint32(token)), name)
        # Old libraries have no tree; the filter is the same then, but slower.
        library.seccomp_attr_set(filtered, _OPTIMIZE, ctypes.c_uint32(_BINARY_TREE))
        for rule in profile.get("syscalls", ()):
            _add(library, filtered, rule, default)
        return _export(library, filtered)
    finally:
        library.seccomp_release(filtered)


def split_clone3(profile: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """The profile with clone3 allowed, and the errno that it says of clone3 itself (0: allowed).

    For a process that has to start others into a control group: the filter goes on it once, and
    each of its children puts `deny_clone3` on itself. Both together say what the profile says.
    """
    number = _action(profile["defaultAction"], profile.get("defaultErrnoRet"))
    rules = []
    for rule in profile.get("syscalls", ()):
        if "clone3" in rule["names"]:
            if rule.get("args"):
                _refuse("conditions on clone3 are not supported")
            number = _action(rule["action"], rule.get("errnoRet"))
        names = [name for name in rule["names"] if name != "clone3"]
        if names:
            rules.append({**rule, "names": names})
    rules.append({"names": ["clone3"], "action": "SCMP_ACT_ALLOW"})
    changed = {**profile, "syscalls": rules}
    return changed, 0 if number == _ACTIONS["SCMP_ACT_ALLOW"] else number & 0xFFFF or _EPERM


def deny_clone3(number: int) -> bytes:
    """A small filter: clone3 fails with this errno, whatever the architecture (the number of the
    call is the same for all, but for the bit of x32); all else is allowed.
    """
    instructions = (
        (0x20, 0, 0, 0),  # load the call's number
        (0x54, 0, 0, 0xBFFFFFFF),  # without the bit of x32
        (0x15, 0, 1, _CLONE3),  # if it is clone3
        (0x06, 0, 0, _ACTIONS["SCMP_ACT_ERRNO"] | number),
        (0x06, 0, 0, _ACTIONS["SCMP_ACT_ALLOW"]),
    )
    return b"".join(struct.pack("=HBBI", *one) for one in instructions)


def _add(library: Any, context: Any, rule: Mapping[str, Any], default: int) -> None:
    action = _action(rule["action"], rule.get("errnoRet"))
    if action == default:
        return  # the library refuses what changes nothing
    for name in rule["names"]:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number == _UNKNOWN:
            continue
        for conditions in _conditions(rule.get("args") or ()):
            compared = (_Compare * len(conditions))(*conditions)
            result = library.seccomp_rule_add_array(
                context,
                ctypes.c_uint32(action),
                ctypes.c_int(number),
                ctypes.c_uint(len(conditions)),
                compared if conditions else None,
            )
            _done(result, name)


def _conditions(args: Any) -> Iterator[list[_Compare]]:
    found = [
        _Compare(arg["index"], _OPERATORS[arg["op"]], arg["value"], arg.get("valueTwo", 0))
        for arg in args
    ]
    indices = [one.arg for one in found]
    if len(set(indices)) == len(indices):
        yield found
    else:
        yield from ([one] for one in found)


def _action(name: str, number: int | None) -> int:
    if name not in _ACTIONS:
        _refuse(f"the action {name} of linux.seccomp is not supported")
    if name == "SCMP_ACT_ERRNO":
        return _ACTIONS[name] | (_EPERM if number is None else number)
    return _ACTIONS[name]


def _export(library: Any, context: Any) -> bytes:
    descriptor = os.memfd_create("pytest-sandbox-filter")
    try:
        _done(library.seccomp_export_bpf(context, descriptor), "the whole filter")
        size = os.lseek(descriptor, 0, os.SEEK_END)
        return os.pread(descriptor, size, 0)
    finally:
        os.close(descriptor)


def _done(result: int, what: str) -> None:
    if result < 0:
        _refuse(f"libseccomp refused {what}: {os.strerror(-result)}")


def _refuse(what: str) -> NoReturn:
    raise RuntimeUnavailable(what, blame=Blame.HOST, next_step="use --sandbox-launcher=runc")


@cache
def _library() -> Any:
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        what = f"libseccomp is not there: {error}"
        step = "install it (apt-get install libseccomp2)"
        raise RuntimeUnavailable(what, blame=Blame.HOST, next_step=step) from error
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_arch_native.restype = ctypes.c_uint32
    library.seccomp_arch_resolve_name.restype = ctypes.c_uint32
    return library


class _Version(ctypes.Structure):
    _fields_ = (  # type: ignore[mutable-override]
        ("major", ctypes.c_uint),
        ("minor", ctypes.c_uint),
        ("micro", ctypes.c_uint),
    )


@cache
def _version() -> str:
    library = _library()
    library.seccomp_version.restype = ctypes.POINTER(_Version)
    found = library.seccomp_version().contents
    return f"{found.major}.{found.minor}.{found.micro}"

"""A seccomp profile of the runtime spec -> the kernel's filter program, by libseccomp.

runc does this at every start (15 ms for three architectures); here it is done once for a profile,
a kernel and a version of the library, and kept in a file.
"""

from __future__ import annotations

import binascii
import ctypes
import json
import os
import struct
from functools import cache
from typing import TYPE_CHECKING, Any, Final, NoReturn

from pytest_sandbox.errors import Blame, RuntimeUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
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
# Classic BPF, as linux/filter.h has it, and where struct seccomp_data has the architecture.
_LOAD, _AND, _EQUAL, _AT_LEAST, _RETURN, _ARCH = 0x20, 0x54, 0x15, 0x35, 0x06, 4
_X32: Final = 0x40000000
_X86_64: Final = 0xC000003E
_X32_TOKEN: Final = 0x4000003E
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
    # The file says itself what it is for: a short name will do, and no hash has to be loaded.
    head = f"{os.uname().release}\n{_version()}\n{text}\n".encode()
    name = f"{binascii.crc32(head):08x}"
    file = folder / f"{name}.bpf"
    try:
        found = file.read_bytes()
        program = found.removeprefix(head)
        if len(head) + len(program) == len(found) and program and len(program) % 8 == 0:
            return program
    except OSError:
        pass
    program = compile_filter(profile)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = folder / f".{name}.{os.urandom(6).hex()}"
    fresh.write_bytes(head + program)
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
            token = _token(library, name)
            if token != own:
                _done(library.seccomp_arch_add(filtered, ctypes.c_uint32(token)), name)
        # Old libraries have no tree; the filter is the same then, but slower.
        library.seccomp_attr_set(filtered, _OPTIMIZE, ctypes.c_uint32(_BINARY_TREE))
        for rule in profile.get("syscalls", ()):
            _add(library, filtered, rule, default)
        return _export(library, filtered)
    finally:
        library.seccomp_release(filtered)


def split(
    profile: Mapping[str, Any], needed: Iterable[str]
) -> tuple[dict[str, Any], dict[str, int]]:
    """The profile with the calls `needed` allowed, and the errno that it has for each of these
    (none for what it allows). Together with `deny` of them, the first is the profile.

    For a process that needs some calls which those that it starts must not have: it puts the first
    on itself, once, and each of them the second, which is small.
    """
    wanted = set(needed)
    default = _action(profile["defaultAction"], profile.get("defaultErrnoRet"))
    outcomes = dict.fromkeys(wanted, default)
    rules = []
    for rule in profile.get("syscalls", ()):
        hit = wanted.intersection(rule["names"])
        if hit and rule.get("args"):
            _refuse(f"conditions on {min(hit)} are not supported")
        outcomes.update(dict.fromkeys(hit, _action(rule["action"], rule.get("errnoRet"))))
        names = [name for name in rule["names"] if name not in wanted]
        if names:
            rules.append({**rule, "names": names})
    rules.append({"names": sorted(wanted), "action": "SCMP_ACT_ALLOW"})
    allowed = _ACTIONS["SCMP_ACT_ALLOW"]
    denied = {
        name: outcome & 0xFFFF or _EPERM for name, outcome in outcomes.items() if outcome != allowed
    }
    return {**profile, "syscalls": rules}, denied


def deny(calls: Mapping[str, int], architectures: Iterable[str]) -> bytes:
    """A filter that gives each of some calls its errno and allows all else; `architectures` as in
    the profile. libseccomp's own would test one number after the other: here few instructions are
    run for each, and so it is quickly put on (the kernel tries every call there is).
    """
    if not calls:
        return b""
    library = _library()
    program = [(_LOAD, 0, 0, _ARCH)]
    tokens: dict[int, dict[int, int]] = {}
    for name in architectures:
        token = _token(library, name)
        numbers = {
            library.seccomp_syscall_resolve_name_arch(ctypes.c_uint32(token), call.encode()): errno
            for call, errno in calls.items()
        }
        # x32 has the numbers of x86_64 with one bit more, and its architecture.
        known = {number & ~_X32: errno for number, errno in numbers.items() if number >= 0}
        kind = _X86_64 if token == _X32_TOKEN else token
        tokens.setdefault(kind, {}).update(known)
    for token, found in tokens.items():
        mask = [(_AND, 0, 0, 0xFFFFFFFF ^ _X32)] if token == _X86_64 else []
        section = [(_LOAD, 0, 0, 0), *mask, *_search(sorted(found.items()))]
        program += [(_EQUAL, 0, len(section), token), *section]
    program.append((_RETURN, 0, 0, _ACTIONS["SCMP_ACT_ALLOW"]))
    return b"".join(struct.pack("=HBBI", *one) for one in program)


def _search(found: Sequence[tuple[int, int]]) -> list[tuple[int, int, int, int]]:
    """By halves; the call's number is loaded."""
    if len(found) == 1:
        number, errno = found[0]
        refuse = (_RETURN, 0, 0, _ACTIONS["SCMP_ACT_ERRNO"] | errno)
        return [(_EQUAL, 0, 1, number), refuse, (_RETURN, 0, 0, _ACTIONS["SCMP_ACT_ALLOW"])]
    half = len(found) // 2
    low, high = _search(found[:half]), _search(found[half:])
    return [(_AT_LEAST, len(low), 0, found[half][0]), *low, *high]


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


def _token(library: Any, name: str) -> int:
    plain = name.removeprefix("SCMP_ARCH_").lower().encode()
    token = int(library.seccomp_arch_resolve_name(plain))
    if token == 0:
        _refuse(f"libseccomp does not know the architecture {name}")
    return token


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

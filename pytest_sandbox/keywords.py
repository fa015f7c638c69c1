"""The keywords of `@pytest.mark.sandbox(...)` and of `sandbox_factory(...)`, read and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pytest_sandbox.errors import UsageError
from pytest_sandbox.limits import PROFILES, parse_size
from pytest_sandbox.runtimes.base import Mount
from pytest_sandbox.targets import ARCHES, FAMILIES, Target, match_targets

if TYPE_CHECKING:
    from pytest_sandbox.runtimes.base import Network

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Options:
    """The keywords of the `sandbox` mark and of `sandbox_factory`, read and checked."""

    target: Target | None = None
    family: str = ""
    arch: str = ""
    limits: Mapping[str, Any] = field(default_factory=dict)
    profile: str = "default"
    network: Network | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    user: str = ""
    cwd: str = "/"
    mounts: tuple[Mount, ...] = ()
    tmpfs: Mapping[str, int] = field(default_factory=dict)
    no_new_privileges: bool = False
    image: str = ""


_LIMIT_KEYS = ("memory", "cpus", "pids", "timeout", "nofile", "disk", "output")
_KEYS = (
    "family",
    "arch",
    "target",
    "profile",
    "network",
    "env",
    "user",
    "cwd",
    "mounts",
    "tmpfs",
    "no_new_privileges",
    "image",
    *_LIMIT_KEYS,
)


def read_options(keywords: Mapping[str, Any], where: str) -> Options:
    """Check the keywords of a mark or a factory call; raises UsageError that names the key
    (`where` is the mark).
    """
    values: dict[str, Any] = {"limits": {}}
    for key, value in keywords.items():
        try:
            if key in _LIMIT_KEYS:
                values["limits"][key] = _limit(key, value)
            else:
                values[key] = _read(key, value)
        except UsageError as wrong:
            msg = f"{where}: {key}={value!r}: {wrong.what}"
            raise UsageError(msg, next_step=wrong.next_step) from None
    for one, other in (("target", "family"), ("target", "arch"), ("image", "family")):
        if one in keywords and other in keywords:
            msg = f"{where}: {one}= and {other}= say the same thing twice"
            raise UsageError(msg, next_step="give one of them")
    return Options(**values)


def _limit(key: str, value: Any) -> float | int:
    kind: type = float if key in {"cpus", "timeout"} else int
    if key in {"memory", "disk", "output"}:
        number: float = parse_size(value)
    elif isinstance(value, bool) or not isinstance(value, int if kind is int else int | float):
        word = "whole number" if kind is int else "number"
        msg = f"is no {word}"
        raise UsageError(msg, next_step=f"write a {word}")
    else:
        number = kind(value)
    if not 0 < number < float("inf"):
        msg = "is not above zero"
        raise UsageError(msg, next_step="write a number above zero")
    return number


def _read(key: str, value: Any) -> Any:  # noqa: PLR0911, PLR0912 - one arm a key
    match key:
        case "network":
            if isinstance(value, bool):
                return "bridge" if value else "none"
            return _one_of(value, ("none", "bridge", "host"))
        case "family":
            return _one_of(value, FAMILIES)
        case "arch":
            return _one_of(value, ARCHES)
        case "profile":
            return _one_of(value, tuple(PROFILES))
        case "target":
            return match_targets([str(value)])[0]
        case "tmpfs":
            if isinstance(value, str):
                value = [value]
            pairs = (
                value.items() if isinstance(value, dict) else ((path, 64 << 20) for path in value)
            )
            return {str(path): parse_size(size) for path, size in pairs}
        case "mounts":
            return tuple(_mount(item) for item in value)
        case "env":
            if not isinstance(value, Mapping):
                msg = "is no mapping"
                raise UsageError(msg, next_step='write it like {"NAME": "value"}')
            return {str(name): str(text) for name, text in value.items()}
        case "no_new_privileges":
            return _one_of(value, (True, False))
        case "user" | "cwd" | "image":
            if not isinstance(value, str):
                msg = "is no text"
                raise UsageError(msg, next_step="write a string")
            return value
        case _:
            msg = "unknown key"
            raise UsageError(msg, next_step=f"use one of {', '.join(sorted(_KEYS))}")


def _mount(item: Any) -> Mount:
    if isinstance(item, tuple | list) and len(item) in {2, 3}:
        item = Mount(*item)
    if not isinstance(item, Mount) or not str(item.target).startswith("/"):
        msg = f"{item!r} is no mount"
        raise UsageError(msg, next_step='write it like Mount(Path("data"), "/data")')
    mount = item
    source = Path(mount.source).expanduser().absolute()
    if not source.exists():
        msg = f"{source} is not there"
        raise UsageError(msg, next_step="make it first, or mend the path")
    return Mount(source, mount.target, mount.read_only)


def _one_of(value: Any, allowed: tuple[_Value, ...]) -> _Value:
    for one in allowed:
        if type(value) is type(one) and value == one:
            return one
    msg = f"unknown value {value!r}"
    raise UsageError(msg, next_step=f"use one of {', '.join(map(str, allowed))}")

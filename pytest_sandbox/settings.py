"""The settings of one run, read from options, environment and ini (the table stands in options).

Precedence is mark > option > environment > ini, the order of pytest-timeout.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.errors import UsageError
from pytest_sandbox.limits import Limits, parse_size
from pytest_sandbox.options import BOUNDS, RUNTIMES, SETTINGS, Kind, Setting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = [
    "SETTINGS",
    "Setting",
    "Settings",
    "parse_age",
    "read_settings",
    "read_value",
]


_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"0", "false", "no", "off", ""}
_DAY = 86400.0
_AGE_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": _DAY, "w": 7 * _DAY}


# Docker's grammar of repository names (distribution/reference), with a registry's port
_REPOSITORY = re.compile(
    r"(?:[A-Za-z0-9.-]+(?::\d+)?/)?[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*"
    r"(?:/[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*)*"
)


_HOST = r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:]+\])(?::\d{1,5})?"
_ORIGIN = re.compile(rf"https?://{_HOST}/?")
_ADDRESS = re.compile(rf"https?://{_HOST}(?:/[A-Za-z0-9._~/-]*)?")
_REGISTRY = re.compile(_HOST)
_COUNTS = ("index-depth", "layers", "entries", "ratio")
"""The bounds that are no sizes in bytes."""


def parse_age(value: str | float) -> float:
    """Seconds from `7d`, `12h`, `90m`, `30s`; a plain number is days. Raises UsageError, also for
    what is below zero or not finite.
    """
    text = str(value).strip().lower()
    unit = text[-1:] if text[-1:] in _AGE_UNITS else "d"
    try:
        seconds = float(text.removesuffix(unit)) * _AGE_UNITS[unit]
    except ValueError:
        seconds = math.nan
    if not (seconds >= 0 and math.isfinite(seconds)):
        msg = f"{value!r} is no age"
        raise UsageError(msg, next_step="write a number with s, m, h, d or w, like 7d")
    return seconds


def _number(kind: Callable[[str], Any], word: str) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        try:
            number = kind(value)
        except (TypeError, ValueError):
            msg = f"{value!r} is no {word}"
            raise UsageError(msg, next_step=f"write a {word}") from None
        if number in (math.inf, -math.inf) or number != number:  # noqa: PLR0124 - nan alone is so
            msg = f"{value!r} is not finite"
            raise UsageError(msg, next_step=f"write a {word} above zero")
        if number <= 0:
            msg = f"{value!r} is not above zero"
            raise UsageError(msg, next_step=f"write a {word} above zero")
        return number

    return read


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    msg = f"{value!r} is neither true nor false"
    raise UsageError(msg, next_step="write 1 or 0")


def _list(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [part for line in value.splitlines() for part in line.replace(",", " ").split()]
    return tuple(str(part).strip() for part in value if str(part).strip())


def _size(value: Any) -> int:
    size = parse_size(value)
    if size <= 0:
        msg = f"{value!r} is not above zero"
        raise UsageError(msg, next_step="write a size like 512m")
    return size


def _count(value: Any) -> int:
    """A whole number, 0 included."""
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = -1
    if number < 0 or isinstance(value, bool):
        msg = f"{value!r} is no whole number"
        raise UsageError(msg, next_step="write 0 or a whole number above it")
    return number


_READ: Final[Mapping[Kind, Callable[[Any], Any]]] = {
    "text": str,
    "path": Path,
    "flag": _flag,
    "int": _number(int, "whole number"),
    "count": _count,
    "float": _number(float, "number"),
    "size": _size,
    "age": parse_age,
    "list": _list,
}


def read_value(setting: Setting, value: Any, source: str) -> Any:
    """The typed value of a setting's text; raises UsageError that names `source` (where the text
    stood).
    """
    try:
        typed = _READ[setting.kind](value)
    except UsageError as wrong:
        msg = f"{source}: {wrong.what}"
        raise UsageError(msg, next_step=wrong.next_step) from None
    if setting.choices and typed not in setting.choices:
        msg = f"{source}: unknown value {value!r}"
        raise UsageError(msg, next_step=f"use one of {', '.join(setting.choices)}")
    return typed


def _split(
    values: tuple[str, ...], source: str, form: str, example: str
) -> Iterator[tuple[str, str]]:
    for value in values:
        name, sep, rest = value.partition("=")
        if not sep or not name or not rest:
            msg = f"{source}: {value!r} is no {form}"
            raise UsageError(msg, next_step=f"write it like {example}")
        yield name, rest


def _servers(
    values: tuple[str, ...], source: str, pattern: re.Pattern[str], example: str
) -> dict[str, tuple[str, ...]]:
    """Registry -> addresses, in the order in which they were given."""
    found: dict[str, tuple[str, ...]] = {}
    for name, url in _split(values, source, "REGISTRY=URL", example):
        for text, wanted in ((name, _REGISTRY), (url, pattern)):
            if not wanted.fullmatch(text):
                msg = f"{source}: {text!r} is no {'address' if text is url else 'registry'}"
                raise UsageError(msg, next_step=f"write it like {example}")
        found[name] = (*found.get(name, ()), url)
    return found


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of one run. None means: not set, the profile or the built-in default holds."""

    runtime: str = "auto"
    target: tuple[str, ...] = ()
    recipes: tuple[str, ...] = ("recipes/**/*.toml",)
    timeout: float | None = None
    memory: int | None = None
    cpus: float | None = None
    pids: int | None = None
    nofile: int | None = None
    disk: int | None = None
    output: int | None = None
    network: str | None = None
    version: tuple[str, ...] = ()
    keep: str = "never"
    pool: int = 8
    rebuild: bool = False
    offline: bool = False
    require: bool = False
    pull: str = "missing"
    families: Path | None = None
    base: tuple[str, ...] = ()
    image_age: float = 7 * _DAY
    image_prefix: str = "tsuku/sandbox-cache"
    build_network: str = "bridge"
    build_timeout: float = 900.0
    build_memory: int = 4 << 30
    build_cpus: float = 4.0
    launcher: str = "auto"
    oci_engine: str = "auto"
    oci_snapshotter: str = "auto"
    weak_limits: str | None = None
    registry_mirror: tuple[str, ...] = ()
    registry_insecure: tuple[str, ...] = ()
    registry_realm: tuple[str, ...] = ()
    registry_timeout: float = 60.0
    durations: bool = False
    image_bound: tuple[str, ...] = ()
    given: frozenset[str] = field(default_factory=frozenset)
    """The keys that somebody set."""

    def limits(self, profile: Limits) -> Limits:
        """The profile with every limit that was set in its place."""
        return profile.override(
            memory=self.memory,
            cpus=self.cpus,
            pids=self.pids,
            nofile=self.nofile,
            disk=self.disk,
            output=self.output,
            timeout=self.timeout,
        )

    def build_limits(self) -> Limits:
        """What an image build may use."""
        return Limits(memory=self.build_memory, cpus=self.build_cpus, timeout=self.build_timeout)

    def versions(self) -> dict[str, str]:
        """Recipe name -> version."""
        return dict(
            _split(self.version, "--sandbox-version", "NAME=VERSION", "--sandbox-version jq=1.7.1")
        )

    def bases(self) -> dict[str, str]:
        """Family -> base image reference."""
        example = "--sandbox-base debian=debian:12"
        return dict(_split(self.base, "--sandbox-base", "FAMILY=REFERENCE", example))

    def mirrors(self) -> dict[str, tuple[str, ...]]:
        """Registry -> base addresses of servers that are asked before it."""
        example = "docker.io=https://mirror.example.org"
        return _servers(self.registry_mirror, "registry-mirror", _ADDRESS, example)

    def realms(self) -> dict[str, tuple[str, ...]]:
        """Registry -> origins of token servers that may see its credentials."""
        example = "registry.example.org=https://login.example.org"
        return _servers(self.registry_realm, "registry-realm", _ORIGIN, example)

    def insecure(self) -> tuple[str, ...]:
        """The registries (`host[:port]`) that may be asked by plain http."""
        for name in self.registry_insecure:
            if not _REGISTRY.fullmatch(name):
                msg = f"registry-insecure: {name!r} is no HOST[:PORT]"
                raise UsageError(msg, next_step="write it like registry.example.org:5000")
        return self.registry_insecure

    def bounds(self) -> dict[str, int]:
        """The bounds on images that were set: name as in oci.bounds.Bounds -> bytes or number."""
        source, found = "image-bound", {}
        for name, text in _split(self.image_bound, source, "NAME=VALUE", "layers=600"):
            if name not in BOUNDS:
                msg = f"{source}: there is no bound {name!r}"
                raise UsageError(msg, next_step=f"use one of {', '.join(BOUNDS)}")
            try:
                value = _READ["int" if name in _COUNTS else "size"](text)
            except UsageError as wrong:
                msg = f"{source}: {name}: {wrong.what}"
                raise UsageError(msg, next_step=wrong.next_step) from None
            found[name.replace("-", "_")] = value
        return found


def _found(
    setting: Setting,
    option: Callable[[str], Any],
    ini: Callable[[str], Any],
    environ: Mapping[str, str],
    dashes: str,
) -> tuple[Any, str] | None:
    """The value as it is written, and where; None where nobody set it."""
    given = option(setting.key)
    if given not in (None, [], (), False):
        return given, f"{dashes}{setting.name}"
    if environ.get(setting.variable):
        return environ[setting.variable], f"environment variable {setting.variable}"
    given = ini(setting.key)
    return (given, f"ini key sandbox_{setting.key}") if given not in (None, [], "") else None


def _check_runtime(name: str, source: str) -> None:
    if name not in RUNTIMES and "://" not in name:
        msg = f"{source}: unknown runtime {name!r}"
        raise UsageError(
            msg,
            next_step=f"use one of {', '.join(RUNTIMES)}, or an address like "
            "unix:///run/docker.sock",
        )


def read_settings(
    option: Callable[[str], Any],
    ini: Callable[[str], Any],
    environ: Mapping[str, str],
    *,
    any_runtime: bool = False,
    dashes: str = "--sandbox-",
) -> Settings:
    """Settings from the three sources; `option` and `ini` take a key and give None (or nothing) if
    unset.

    `any_runtime`: another plugin may give the runtime, so every name of one is taken. `dashes`:
    what options begin with. Raises UsageError that names the source of a wrong value.
    """
    values: dict[str, Any] = {}
    for setting in SETTINGS:
        found = _found(setting, option, ini, environ, dashes)
        if found is None:
            continue
        given, source = found
        value = read_value(setting, given, source)
        if setting.key == "runtime" and not any_runtime:
            _check_runtime(value, source)
        values[setting.key] = value
    settings = Settings(**values, given=frozenset(values))
    for check in (
        settings.versions,
        settings.bases,
        settings.mirrors,
        settings.realms,
        settings.insecure,
        settings.bounds,
    ):
        check()
    if not _REPOSITORY.fullmatch(settings.image_prefix):
        msg = f"--sandbox-image-prefix: {settings.image_prefix!r} is no repository name"
        raise UsageError(msg, next_step="write lower-case words, like tsuku/sandbox-cache")
    return settings

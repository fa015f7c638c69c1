"""The process of a sandbox: argv, environment, working folder, stop signal, annotations.

The rules are those of the image spec's conversion page, and Docker's where that page is silent.
"""

from __future__ import annotations

import posixpath
import re
import signal
from typing import TYPE_CHECKING, Final

from pytest_sandbox.errors import InvalidImage, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pytest_sandbox.oci.config import ImageConfig

DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_RUNTIME_ANNOTATIONS: Final = ("run.oci.", "org.systemd.property.", "org.criu.", "module.wasm.")
"""Annotations that steer the runtime itself (crun's hooks and handlers, systemd units, CRIU). An
image's labels become annotations, and a stranger's image must not steer anything.
"""
_REALTIME: Final = re.compile(r"RT(MIN|MAX)(?:([+-])(\d{1,2}))?")


def arguments(
    config: ImageConfig,
    argv: Sequence[str] = (),
    entrypoint: Sequence[str] | None = None,
) -> list[str]:
    """Entrypoint + Cmd. `argv` replaces Cmd only; `entrypoint` replaces Entrypoint and drops Cmd,
    and an empty one ([] or [""]) leaves the arguments alone. Raises UsageError where nothing is
    left to run: no shell is invented.
    """
    first = list(config.entrypoint if entrypoint is None else entrypoint)
    if first == [""]:
        first = []
    rest = list(argv) if argv or entrypoint is not None else list(config.cmd)
    if not first and not rest:
        msg = "the image names no command, and none was given"
        raise UsageError(msg, next_step="write the command behind the image")
    if not (first or rest)[0]:
        msg = "the command's name is empty"
        raise UsageError(msg, next_step="name a program, or pass the empty text as an argument")
    return first + rest


def _merge(base: dict[str, str], entries: Iterable[str], source: str) -> None:
    """Put `entries` into `base` by name, which keeps its place. `NAME` alone removes the name."""
    for entry in entries:
        name, equals, value = entry.partition("=")
        if not name:
            error = InvalidImage if source == "image" else UsageError
            msg = f"the {source}'s environment has an entry without a name: {entry!r}"
            raise error(msg, next_step="the form is NAME=VALUE")
        if equals:
            base[name] = value
        else:
            base.pop(name, None)


def environment(
    config: ImageConfig,
    overrides: Iterable[str] = (),
    *,
    hostname: str = "",
    home: str = "",
    tty: bool = False,
) -> list[str]:
    """The environment as `NAME=VALUE` texts.

    PATH, HOSTNAME and (with a tty) TERM are there unless the image says otherwise; the image's
    names follow in its order; `overrides` change a value in its place, add one, or (`NAME` alone)
    remove one. HOME is the user's, where nothing else sets it.
    """
    merged = {"PATH": DEFAULT_PATH}
    if hostname:
        merged["HOSTNAME"] = hostname
    if tty:
        merged["TERM"] = "xterm"
    _merge(merged, config.env, "image")
    _merge(merged, overrides, "caller")
    if home and not merged.get("HOME"):
        merged["HOME"] = home
    return [f"{name}={value}" for name, value in merged.items()]


def host_values(entries: Iterable[str], environ: Mapping[str, str]) -> list[str]:
    """`-e` as Docker reads it: `NAME` alone takes the host's value; where the host has none it
    stays alone, and so removes the name.
    """
    return [
        f"{entry}={environ[entry]}" if "=" not in entry and entry in environ else entry
        for entry in entries
    ]


def working_dir(config: ImageConfig, cwd: str = "") -> str:
    """The absolute, normal working folder: the caller's, else the image's, else "/". Raises
    UsageError for a relative one of the caller; the image's own counts from "/".
    """
    if cwd and not cwd.startswith("/"):
        msg = f"the working folder {cwd!r} is not absolute"
        raise UsageError(msg, next_step="write it from / on")
    return absolute(cwd or config.working_dir)


def absolute(path: str) -> str:
    """`path` from the root on, without `.`, `..` and double slashes."""
    return posixpath.normpath("/" + path.lstrip("/"))


def volumes(config: ImageConfig) -> list[str]:
    """The folders that the image calls volumes, normal and once each. Raises InvalidImage for
    "/".

    A volume is a plain folder of the sandbox's own copy-on-write root: made if it is missing, with
    the image's content in it (which is what seeding an anonymous volume gives), gone with the
    sandbox. Under a read-only root it stays writable (mounts.py).
    """
    found = dict.fromkeys(absolute(path) for path in config.volumes if path)
    if "/" in found:
        msg = "the image calls its whole root a volume"
        raise InvalidImage(msg, next_step="the image's author has to name a folder")
    return list(found)


def signal_number(text: str) -> int:
    """The number of a signal: `SIGTERM`, `term`, `15`, `SIGRTMIN+3`, `RTMAX-1`. Raises
    UsageError.
    """
    name = text.strip().upper().removeprefix("SIG")
    number = 0
    if re.fullmatch(r"[0-9]{1,2}", name):
        number = int(name)
    elif match := _REALTIME.fullmatch(name):
        offset = int(match[3] or 0)
        if match[1] == "MIN" and match[2] != "-":
            number = signal.SIGRTMIN + offset
        elif match[1] == "MAX" and match[2] != "+":
            number = signal.SIGRTMAX - offset
        if not signal.SIGRTMIN <= number <= signal.SIGRTMAX:
            number = 0
    elif f"SIG{name}" in signal.Signals.__members__:
        number = signal.Signals[f"SIG{name}"].value
    if not 0 < number <= signal.SIGRTMAX:
        msg = f"{text!r} is no signal"
        raise UsageError(msg, next_step="write a name like TERM or SIGRTMIN+3, or a number to 64")
    return int(number)


def stop_signal(config: ImageConfig, override: str = "") -> int:
    """The signal that asks the process to end: the caller's, else the image's, else TERM."""
    if override:
        return signal_number(override)
    try:
        return signal_number(config.stop_signal) if config.stop_signal else int(signal.SIGTERM)
    except UsageError as error:
        msg = f"StopSignal of the image config: {error.what}"
        raise InvalidImage(msg, next_step=error.next_step) from error


def image_annotations(
    config: ImageConfig, override_stop: str = "", extra: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The runtime spec's annotations: implicit ones, the image's labels over them, `extra` last.

    Labels that would steer the runtime itself are left out (run.oci.*, org.systemd.property.*,
    org.criu.*, module.wasm.*).
    """
    prefix = "org.opencontainers.image."
    implicit = {
        "os": config.os,
        "architecture": config.architecture,
        "variant": config.variant,
        "author": config.author,
        "created": config.created,
        "stopSignal": override_stop or config.stop_signal,
        "exposedPorts": ",".join(config.exposed_ports),
    }
    found = {prefix + name: value for name, value in implicit.items() if value}
    found |= {
        name: value
        for name, value in config.labels.items()
        if name and not name.startswith(_RUNTIME_ANNOTATIONS)
    }
    return found | dict(extra or {})

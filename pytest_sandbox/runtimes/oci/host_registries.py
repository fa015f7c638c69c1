"""Mirrors and plain-http registries that this machine's own container tools are set up with.

Read are registries.conf of Podman, Skopeo and Buildah (containers-registries.conf(5), version 2)
and daemon.json of Docker. Entries for a part of a registry (a prefix with a path or a wildcard) are
left out: mirrors here are for whole registries.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_HUB: Final = "docker.io"
_HOST: Final = re.compile(r"[A-Za-z0-9.-]+(?::\d{1,5})?|\[[0-9A-Fa-f:]+\](?::\d{1,5})?")


class HostRegistries(NamedTuple):
    """`mirrors` is registry -> base addresses, `insecure` the registries that plain http may ask,
    `files` where that stands.
    """

    mirrors: dict[str, tuple[str, ...]]
    insecure: tuple[str, ...]
    files: tuple[str, ...]


def host_registries(environ: Mapping[str, str], root: str | Path = "/") -> HostRegistries:
    """What the files below `root` say. One that is not there or cannot be read says nothing."""
    mirrors: dict[str, list[str]] = {}
    insecure: list[str] = []
    files: list[str] = []
    for file, read in _files(environ, Path(root)):
        before = (sum(map(len, mirrors.values())), len(insecure))
        read(file, mirrors, insecure)
        if (sum(map(len, mirrors.values())), len(insecure)) != before:
            files.append(str(file))
    return HostRegistries(
        {name: tuple(dict.fromkeys(urls)) for name, urls in mirrors.items()},
        tuple(dict.fromkeys(insecure)),
        tuple(files),
    )


def _files(environ: Mapping[str, str], root: Path) -> Iterator[tuple[Path, Any]]:
    """Every file and its reader. The user's registries.conf stands in place of the machine's."""
    home = environ.get("HOME", "")
    config = environ.get("XDG_CONFIG_HOME") or (f"{home}/.config" if home else "")
    own = Path(config, "containers") if config else None
    system = root / "etc/containers"
    if named := environ.get("CONTAINERS_REGISTRIES_CONF"):
        yield Path(named), _registries_conf
    else:
        found = own / "registries.conf" if own else None
        yield found if found and found.is_file() else system / "registries.conf", _registries_conf
        for folder in (system, own):
            below = folder / "registries.conf.d" if folder else None
            if below and os.access(below, os.R_OK | os.X_OK):
                yield from ((file, _registries_conf) for file in sorted(below.glob("*.conf")))
    yield root / "etc/docker/daemon.json", _daemon_json
    if config:
        yield Path(config, "docker", "daemon.json"), _daemon_json


def _registries_conf(file: Path, mirrors: dict[str, list[str]], insecure: list[str]) -> None:
    import tomli

    try:
        entries = tomli.loads(file.read_text(encoding="utf-8")).get("registry")
    except (OSError, UnicodeDecodeError, tomli.TOMLDecodeError):
        return
    for entry in _tables(entries):
        location = _text(entry, "location")
        registry = _text(entry, "prefix") or location
        if not _HOST.fullmatch(registry) or entry.get("blocked") is True:
            continue
        if entry.get("insecure") is True and location in {"", registry}:
            insecure.append(registry)
        others = [*_tables(entry.get("mirror"))]
        if location not in {"", registry}:
            others.append(entry)
        urls = [url for other in others if (url := _url(other, insecure))]
        if urls:
            mirrors.setdefault(registry, []).extend(urls)


def _url(entry: Mapping[str, Any], insecure: list[str]) -> str:
    """The base address of a mirror; empty for what is none, or is for digests or tags alone."""
    location = _text(entry, "location").rstrip("/")
    host, slash, path = location.partition("/")
    only = entry.get("pull-from-mirror", "all")
    if not _HOST.fullmatch(host) or (slash and not path) or only != "all":
        return ""
    if entry.get("insecure") is True:
        insecure.append(host)
        return f"http://{location}"
    return f"https://{location}"


def _daemon_json(file: Path, mirrors: dict[str, list[str]], insecure: list[str]) -> None:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return
    if not isinstance(found, dict):
        return
    plain = [host for host in _texts(found.get("insecure-registries")) if _HOST.fullmatch(host)]
    insecure += plain
    urls = [url.rstrip("/") for url in _texts(found.get("registry-mirrors"))]
    urls = [url for url in urls if re.fullmatch(r"https?://[^/?#@\s]+(?:/[^?#\s]*)?", url)]
    insecure += [url.split("/")[2] for url in urls if url.startswith("http:")]
    if urls:
        mirrors.setdefault(_HUB, []).extend(urls)


def _tables(value: object) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _texts(value: object) -> list[str]:
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []


def _text(entry: Mapping[str, Any], key: str) -> str:
    value = entry.get(key)
    return value if isinstance(value, str) else ""

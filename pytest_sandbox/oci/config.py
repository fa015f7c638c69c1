"""The image configuration, typed (OCI image spec, config.md, and Docker's fields beside it).

Every field of the document is kept in `raw`, also the ones that nobody knows. A field of a wrong
type is an error that names it: nothing is guessed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from pytest_sandbox.errors import InvalidImage
from pytest_sandbox.oci.bounds import DEFAULT_BOUNDS, Bounds
from pytest_sandbox.oci.documents import read_document

_PORT: Final = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?(?:/(tcp|udp|sctp))?", re.IGNORECASE)


class Port(NamedTuple):
    """One port that an image says it listens on. It publishes nothing."""

    number: int
    protocol: str


class ImageConfig(NamedTuple):
    """What an image says about the process that runs in it.

    `env` holds `NAME=VALUE` texts in the image's order. `working_dir`, `user` and `stop_signal`
    are as written, "" where absent. `volumes` and `exposed_ports` are the keys of the document.
    `healthcheck`, `on_build`, `shell` and `args_escaped` are Docker's; the engine runs a
    healthcheck, never the runtime. `raw` is the whole document.
    """

    os: str = "linux"
    architecture: str = ""
    variant: str = ""
    created: str = ""
    author: str = ""
    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    working_dir: str = ""
    user: str = ""
    stop_signal: str = ""
    volumes: tuple[str, ...] = ()
    exposed_ports: tuple[str, ...] = ()
    labels: Mapping[str, str] = MappingProxyType({})
    healthcheck: Mapping[str, Any] | None = None
    on_build: tuple[str, ...] = ()
    shell: tuple[str, ...] = ()
    args_escaped: bool = False
    diff_ids: tuple[str, ...] = ()
    raw: Mapping[str, Any] = MappingProxyType({})

    def ports(self) -> tuple[Port, ...]:
        """`exposed_ports`, parsed: "80", "80/tcp", "53/udp", "8000-8010". Raises InvalidImage."""
        found: list[Port] = []
        for text in self.exposed_ports:
            match = _PORT.fullmatch(text)
            first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
            if match is None or not 0 < first <= last <= 65535:
                msg = f"ExposedPorts of the image config: {text!r} is no port"
                raise InvalidImage(msg, next_step="the form is 80, 80/tcp, 53/udp or 8000-8010")
            protocol = (match[3] or "tcp").lower()
            found += [Port(number, protocol) for number in range(first, last + 1)]
        return tuple(dict.fromkeys(found))


class _Reader:
    """Takes typed fields out of one JSON object; `where` names it in errors."""

    def __init__(self, value: Any, where: str) -> None:
        self._where = where
        self._fields: Mapping[str, Any] = self._check(value, Mapping, where, "an object")

    @staticmethod
    def _check(value: Any, kind: Any, where: str, wanted: str) -> Any:
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            msg = f"{where} is {json.dumps(value)[:80]}; expected {wanted}"
            raise InvalidImage(msg, next_step="the image's author has to rebuild it")
        return value

    def _take(self, name: str, kind: Any, wanted: str) -> Any:
        value = self._fields.get(name)
        return None if value is None else self._check(value, kind, f"{self._where}{name}", wanted)

    def text(self, name: str) -> str:
        return self._take(name, str, "a text") or ""

    def flag(self, name: str) -> bool:
        return bool(self._take(name, bool, "true or false"))

    def words(self, name: str) -> tuple[str, ...]:
        """A list of texts; one bare text is a list of one, as Docker reads it."""
        value = self._take(name, (list, str), "a list of texts")
        if isinstance(value, str):
            return (value,)
        for item in value or ():
            self._check(item, str, f"an item of {self._where}{name}", "a text")
        return tuple(value or ())

    def keys(self, name: str) -> tuple[str, ...]:
        """The keys of a set that is written as an object; sorted, for its order means nothing."""
        return tuple(sorted(self._take(name, Mapping, "an object") or ()))

    def texts(self, name: str) -> dict[str, str]:
        value: Mapping[str, Any] = self._take(name, Mapping, "an object") or {}
        for key, item in value.items():
            self._check(item, str, f"{key!r} of {self._where}{name}", "a text")
        return dict(value)

    def object(self, name: str) -> Mapping[str, Any] | None:
        value: Mapping[str, Any] | None = self._take(name, Mapping, "an object")
        return value


def parse_image_config(
    document: bytes | Mapping[str, Any], bounds: Bounds = DEFAULT_BOUNDS
) -> ImageConfig:
    """The typed image config. `document` is its JSON text, or that text already parsed.

    Raises InvalidImage where it is no JSON object, a field has a wrong type, or the image is not
    for Linux.
    """
    if isinstance(document, bytes):
        document = read_document(document, what="the image config", limit=bounds.config)
    top = _Reader(document, "the image config: ")
    os_name = top.text("os") or "linux"
    if os_name != "linux":
        msg = f"the image is for {os_name!r}; sandboxes run Linux images"
        raise InvalidImage(msg, next_step="choose an image for linux")
    inner = _Reader(top.object("config") or {}, "the image config: config.")
    rootfs = _Reader(top.object("rootfs") or {}, "the image config: rootfs.")
    return ImageConfig(
        os=os_name,
        architecture=top.text("architecture"),
        variant=top.text("variant"),
        created=top.text("created"),
        author=top.text("author"),
        env=inner.words("Env"),
        entrypoint=inner.words("Entrypoint"),
        cmd=inner.words("Cmd"),
        working_dir=inner.text("WorkingDir"),
        user=inner.text("User"),
        stop_signal=inner.text("StopSignal"),
        volumes=inner.keys("Volumes"),
        exposed_ports=inner.keys("ExposedPorts"),
        labels=inner.texts("Labels"),
        healthcheck=inner.object("Healthcheck"),
        on_build=inner.words("OnBuild"),
        shell=inner.words("Shell"),
        args_escaped=inner.flag("ArgsEscaped"),
        diff_ids=rootfs.words("diff_ids"),
        raw=dict(document),
    )

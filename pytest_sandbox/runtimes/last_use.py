"""When images were last used, and the removal of those that nobody uses any more."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pytest_sandbox.errors import SandboxError
from pytest_sandbox.images.name import HASH_LABEL, PREFIX
from pytest_sandbox.provision import bases
from pytest_sandbox.provision.bases import BASE_SHA_LABEL, Base, without_digest
from pytest_sandbox.runtimes.bases import base_name

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pytest_sandbox.runtimes.base import ImageInfo, Runtime

    Say = Callable[[str], None]

INSTALLED: Final = "tsuku/sandbox-installed"
"""The repository of installations that tests fork."""

MAX_AGE: Final = 7 * 86400.0
"""Seconds after which an image is built anew, and after which one that was not used is pruned."""


def _silent(line: str) -> None:
    del line


def mark_used(name: str) -> None:
    """Note that an image was used now."""
    file = _marker("used", name)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    except OSError:
        # Only `image prune` reads it, and falls back to the image's age.
        return


def last_use(info: ImageInfo) -> float:
    """When an image was last used, as POSIX time; its creation where nothing was noted since."""
    try:
        return _marker("used", info.name).stat().st_mtime
    except OSError:
        return info.created


def cached_images(runtime: Runtime, prefix: str = PREFIX) -> list[ImageInfo]:
    """The images that were made here under `prefix`; INSTALLED for cached installations."""
    return [
        info
        for info in runtime.images()
        if HASH_LABEL in info.labels and repository(info.name) == prefix
    ]


def imported_bases(runtime: Runtime) -> list[tuple[Base, ImageInfo | None]]:
    """Every recorded base with its image on this engine, None where the engine does not have it."""
    found = []
    for base in bases.recorded_bases():
        info = runtime.find_image(base_name(base.reference, base.arch))
        ours = info is not None and info.labels.get(BASE_SHA_LABEL) == base.sha256
        found.append((base, info if ours else None))
    return found


def prune(
    runtime: Runtime,
    *,
    older_than: float = MAX_AGE,
    everything: bool = False,
    prefix: str = PREFIX,
    say: Say = _silent,
) -> list[ImageInfo]:
    """Remove built images and cached installations that were not used for `older_than` seconds;
    what was removed.

    `everything`: all of them, and the bootstrapped bases with their tars. An image that is being
    built or used stays, and is said.
    """
    from pytest_sandbox.runtimes.locks import image_lock_is_free

    removed = []
    now = time.time()
    for info in (*cached_images(runtime, INSTALLED), *cached_images(runtime, prefix)):
        if not everything and now - last_use(info) < older_than:
            continue
        with image_lock_is_free(info.labels[HASH_LABEL]) as free:
            if not free:
                say(f"{info.name} is being built; it stays")
            elif _remove(runtime, info, say):
                removed.append(info)
                _marker("used", info.name).unlink(missing_ok=True)
                _marker("rebuilt", info.name).unlink(missing_ok=True)
    if everything:
        for base, found in imported_bases(runtime):
            if found is None or _remove(runtime, found, say):
                bases.forget_base(base.reference, base.arch)
                removed += [found] if found else []
    for tar in bases.kept_tars():
        tar.unlink(missing_ok=True)
    return removed


def _remove(runtime: Runtime, info: ImageInfo, say: Say) -> bool:
    try:
        runtime.remove_image(info.name)
    except SandboxError as error:
        say(f"{info.name} stays: {error.what}")
        return False
    return True


def repository(name: str) -> str:
    """The name without tag, digest and the `localhost/` that Podman puts before it."""
    return without_digest(name).rpartition(":")[0].removeprefix("localhost/")


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """Which run built an image anew last."""

    file: Path

    def token(self) -> str:
        """That run's token, or empty."""
        try:
            return self.file.read_text(encoding="utf-8")
        except OSError:
            return ""

    def note(self, token: str) -> None:
        """Say that this run did it."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text(token, encoding="utf-8")


def rebuilt_in(name: str) -> Rebuilt:
    """The note for an image; whoever reads and writes it holds the image's lock."""
    return Rebuilt(_marker("rebuilt", name))


def _marker(kind: str, name: str) -> Path:
    return bases.cache_dir() / kind / re.sub(r"[^A-Za-z0-9._-]", "_", name)

"""Which layers are in use by sandboxes: uses/<id>.json, with the process that they belong to."""

from __future__ import annotations

import contextlib
import re
import time
from typing import TYPE_CHECKING, Final

from pytest_sandbox.errors import UsageError
from pytest_sandbox.oci.store.files import names, read_json, write_json
from pytest_sandbox.oci.store.owners import Owner, parse_owner

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


class Uses:
    """The uses that one store knows of."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _file(self, identity: str) -> Path:
        if not _NAME.fullmatch(identity):
            msg = f"{identity[:100]!r} is no name of a sandbox"
            raise UsageError(msg, next_step="use letters, digits, dots and dashes")
        return self._folder / f"{identity}.json"

    def put(self, identity: str, keys: Sequence[str], owner: Owner) -> None:
        """Note the layers that a sandbox is made of, in the place of what was noted for it."""
        document = {"layers": list(keys), "owner": owner.document(), "since": time.time()}
        write_json(self._file(identity), document)

    def release(self, identity: str) -> None:
        """The sandbox needs its layers no more."""
        with contextlib.suppress(FileNotFoundError):
            self._file(identity).unlink()

    def living(self) -> tuple[set[str], list[str]]:
        """The layers that living owners use, and the sandboxes whose owner is dead."""
        layers: set[str] = set()
        dead: list[str] = []
        for name in names(self._folder):
            if not name.endswith(".json"):
                continue
            found = read_json(self._folder / name)
            if found is None:
                continue
            try:
                owner = parse_owner(found["owner"])
                gone = owner.is_dead(time.time() - float(found["since"]))
                keys = [str(key) for key in found["layers"]]
            except (KeyError, TypeError, ValueError):
                continue
            if gone:
                dead.append(name.removesuffix(".json"))
            else:
                layers.update(keys)
        return layers, dead

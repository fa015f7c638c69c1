"""The folder of a process for the FIFOs of its sandboxes; it says whose it is."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pytest_sandbox.runtimes.base import Owner

if TYPE_CHECKING:
    from collections.abc import Callable

_PREFIX: Final = "pytest-sandbox-run-"
_OWNER_FILE: Final = "owner.json"


class RunFolder:
    """Made when the first sandbox needs it, and again if somebody removed it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._path: Path | None = None
        self._pid = os.getpid()

    def make(self, owner: Owner, name: str) -> Path:
        """A folder for one sandbox, which its user, whoever that is, can walk through."""
        with self._lock:
            if self._pid != os.getpid():  # a fork has its own
                self._path, self._pid = None, os.getpid()
            if self._path is None or not self._path.is_dir():
                self._path = make_run_folder(owner)
            folder = self._path / name
        folder.mkdir()
        folder.chmod(0o711)
        return folder

    def close(self) -> None:
        """Remove it with all that is in it."""
        with self._lock:
            path, self._path = self._path, None
        if path is not None and self._pid == os.getpid():
            shutil.rmtree(path, ignore_errors=True)


def make_run_folder(owner: Owner) -> Path:
    """A private folder of this process."""
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    data = {**asdict(owner), "created": time.time()}
    (folder / _OWNER_FILE).write_text(json.dumps(data), encoding="utf-8")
    return folder


def reap_folders(is_dead: Callable[[Owner, float], bool]) -> int:
    """Remove the folders that dead owners left; the number of them."""
    count = 0
    for folder in Path(tempfile.gettempdir()).glob(_PREFIX + "*"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            found = folder.lstat()
            if found.st_uid != os.getuid() or not folder.is_dir() or folder.is_symlink():
                continue
            data = json.loads((folder / _OWNER_FILE).read_text(encoding="utf-8"))
            created = float(data.pop("created"))
            if is_dead(Owner(**data), created):
                shutil.rmtree(folder, ignore_errors=True)
                count += 1
    return count

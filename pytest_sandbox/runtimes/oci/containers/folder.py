"""The folders of sandboxes: claimed, found, removed.

`containers/<id>/` holds `state.json` (a Record), `end` (empty until the end, then an Ending; it is
written in place, so that who has it open reads it even when the folder is gone), `reason` (why it
was killed, where we did it), `log` and `log.1` (detached ones, see log.py) and `s`, the socket of
its supervisor. A folder that is being made has a dot in front of its name.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pytest_sandbox.errors import SandboxError, UsageError
from pytest_sandbox.oci.store.files import names, read_json, write_json
from pytest_sandbox.runtimes.oci.containers.record import Ending, Record

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER: Final = "containers"
SOCKET: Final = "s"
END: Final = "end"
REASON: Final = "reason"
_STATE: Final = "state.json"
_NAME: Final = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}"
_ID: Final = r"[0-9a-f]{32}"
_PATIENCE: Final = 3600.0
"""A folder that nobody finished is left alone for so many seconds."""


def new_id() -> str:
    """The id of a sandbox: 32 hex digits, short enough for the paths of sockets below it."""
    return os.urandom(16).hex()


def check_name(name: str) -> str:
    """`name`, if it can be a sandbox's. Raises UsageError."""
    if not re.fullmatch(_NAME, name):
        msg = f"{name[:140]!r} is no name of a sandbox"
        raise UsageError(msg, next_step="begin with a letter or digit; then also _ . and -")
    return name


class Container:
    """One sandbox on the disk, as it was when it was looked at."""

    def __init__(self, folder: Path, record: Record, end: Ending | None) -> None:
        self.folder = folder
        self.record = record
        self.end = end

    @property
    def id(self) -> str:
        """32 hex digits."""
        return self.record.id

    @property
    def short(self) -> str:
        """The first twelve of them."""
        return self.record.id[:12]

    @property
    def called(self) -> str:
        """Its name, or its short id."""
        return self.record.name or self.short

    def alive(self) -> bool:
        """Whether its supervisor is there: it will tell the end."""
        return self.end is None and not self.record.owner.is_dead(time.time() - self.record.created)

    @property
    def status(self) -> str:
        """`created`, `running`, `exited`, or `lost` (killed with its supervisor)."""
        if self.end is not None:
            return "exited"
        if not self.alive():
            # It may have ended just now: the end is written before the supervisor goes.
            self.end = read_end(self.folder)
            return "lost" if self.end is None else "exited"
        return "running" if self.record.pid else "created"

    def refresh(self) -> Container:
        """As it is now. Raises UnknownSandbox where it was removed."""
        found = _look(self.folder)
        if found is None:
            raise UnknownSandbox(self.called)
        return found


class UnknownSandbox(SandboxError):
    """No sandbox of that name or id."""

    def __init__(self, text: str) -> None:
        super().__init__(
            f"there is no sandbox {text!r}", next_step="pytest-sandbox ps -a lists those there are"
        )


class NotRunning(SandboxError):
    """The sandbox is there but has ended."""

    def __init__(self, container: Container) -> None:
        how = f" with status {container.end.code}" if container.end else ""
        super().__init__(
            f"sandbox {container.called} is not running: it ended{how}",
            next_step=f"pytest-sandbox rm {container.called}, and run it again",
        )


class Containers:
    """All sandboxes of one store."""

    def __init__(self, store: Path) -> None:
        self.root = store / FOLDER

    def all(self) -> list[Container]:
        """Every one, the youngest first."""
        found = [_look(self.root / name) for name in names(self.root)]
        present = [one for one in found if one is not None]
        return sorted(present, key=lambda one: one.record.created, reverse=True)

    def find(self, text: str) -> Container:
        """The one of this name, id, or beginning of an id. Raises UnknownSandbox, UsageError."""
        if re.fullmatch(_ID, text):
            exact = _look(self.root / text)
            if exact is not None:
                return exact
        every = self.all()
        for one in every:
            if one.record.name == text:
                return one
        if not re.fullmatch(r"[0-9a-f]+", text):
            raise UnknownSandbox(text)
        begun = [one for one in every if one.id.startswith(text)]
        if not begun:
            raise UnknownSandbox(text)
        if len(begun) > 1:
            msg = f"{text!r} is the beginning of {len(begun)} ids"
            raise UsageError(msg, next_step="write more digits")
        return begun[0]

    def refuse_used(self, name: str) -> None:
        """Raises SandboxError for a name that a sandbox has, living or ended."""
        for one in self.all():
            if one.record.name == name:
                running = one.status in {"created", "running"}
                state = "running" if running else "ended"
                step = f"pytest-sandbox rm {'-f ' if running else ''}{name}, or take another name"
                what = f"{state} sandbox {one.short} ({one.record.image})"
                msg = f"the name {name} is used by the {what}"
                raise SandboxError(msg, next_step=step)

    def claim(self, record: Record) -> tuple[Path, socket.socket]:
        """Make the folder of a new sandbox: its path and the listening socket in it.

        Raises SandboxError for a name that is used; of two at once, one gets it.
        """
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        aside, final = self.root / f".{record.id}", self.root / record.id
        aside.mkdir(mode=0o700)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            write_json(aside / _STATE, record.document())
            (aside / END).touch(mode=0o600)
            with _short(aside / SOCKET) as path:
                listener.bind(path)
            listener.listen(64)
            if not record.name:
                aside.rename(final)
                return final, listener
            with self._lock():
                self.refuse_used(record.name)
                aside.rename(final)
        except BaseException:
            listener.close()
            shutil.rmtree(aside, ignore_errors=True)
            raise
        return final, listener

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        descriptor = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def half_made(self) -> list[Path]:
        """Folders whose maker died before they were a sandbox's."""
        found = []
        with contextlib.suppress(FileNotFoundError):
            for entry in os.scandir(self.root):
                if not entry.is_dir(follow_symlinks=False) or not entry.name.startswith("."):
                    continue
                folder = Path(entry.path)
                record = read_record(folder)
                with contextlib.suppress(FileNotFoundError):
                    age = time.time() - entry.stat(follow_symlinks=False).st_mtime
                    if record.owner.is_dead(age) if record else age > _PATIENCE:
                        found.append(folder)
        return found


def write_record(folder: Path, record: Record) -> None:
    """Put a new state in the place of the old one."""
    write_json(folder / _STATE, record.document())


def write_end(folder: Path, end: Ending) -> None:
    """Tell the end, to those also who have the file open."""
    descriptor = os.open(folder / END, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.pwrite(descriptor, json.dumps(end.document()).encode() + b"\n", 0)
    finally:
        os.close(descriptor)


def read_end(source: Path | int) -> Ending | None:
    """The end as a folder tells it, or an open `end` file; None before it."""
    try:
        if isinstance(source, Path):
            data = (source / END).read_bytes()
        else:
            data = os.pread(source, 4096, 0)
        return Ending.read(json.loads(data)) if data else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remove_folder(folder: Path) -> None:
    """Remove it, in one moment for those who look."""
    gone = folder.with_name(f".gone-{folder.name}-{os.urandom(4).hex()}")
    with contextlib.suppress(FileNotFoundError):
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def connect(folder: Path) -> socket.socket:
    """A connection to the supervisor. Raises OSError where there is none."""
    end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with _short(folder / SOCKET) as path:
            end.connect(path)
    except BaseException:
        end.close()
        raise
    return end


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """A path for a socket address, which holds 107 bytes."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def _look(folder: Path) -> Container | None:
    record = read_record(folder)
    return None if record is None else Container(folder, record, read_end(folder))


def read_record(folder: Path) -> Record | None:
    """The state in a folder; None where there is none."""
    found = read_json(folder / _STATE)
    if found is None:
        return None
    try:
        return Record.read(found)
    except (KeyError, TypeError, ValueError):
        return None

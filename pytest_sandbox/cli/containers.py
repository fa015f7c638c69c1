"""What `run` and its kin share: their options, their errors, and how they find a sandbox."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from pytest_sandbox.errors import SandboxError, UsageError, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from pytest_sandbox.runtimes.oci.containers.folder import Container, Containers
    from pytest_sandbox.runtimes.oci.foreground import Streams

ENGINE: Final = 125
"""The exit status of what is not the command's own failure."""


def store_folder() -> Path:
    """The store, where the records of sandboxes are, too."""
    from pytest_sandbox.folders import data_folder

    return data_folder() / "oci"


def all_containers() -> Containers:
    """The sandboxes of this user."""
    from pytest_sandbox.runtimes.oci.containers.folder import Containers

    return Containers(store_folder())


def swept() -> Containers:
    """The same, after clearing away what killed ones have left."""
    found = all_containers()
    if any(one.status == "lost" for one in found.all()) or found.half_made():
        from pytest_sandbox.runtimes.oci.containers.host import Host
        from pytest_sandbox.runtimes.oci.containers.reaping import reap

        host = Host(store_folder())
        try:
            reap(found, host.store)
        finally:
            host.close()
    return found


def command_words(words: Sequence[str]) -> tuple[str, ...]:
    """The command behind an image or a name: one `--` in front of it is ours, all else is its."""
    return tuple(words[1:] if words[:1] == ("--",) or words[:1] == ["--"] else words)


def variables(entries: Iterable[str], files: Iterable[str]) -> tuple[str, ...]:
    """The environment of `--env-file` and `-e`, the later ones stronger: NAME alone takes our own
    value, or removes the name where we have none. Raises UsageError.
    """
    from pytest_sandbox.oci.spec.process import host_values

    lines: list[str] = []
    for name in files:
        try:
            text = Path(name).read_text(encoding="utf-8", errors="surrogateescape")
        except OSError as wrong:
            msg = f"--env-file {name}: {wrong.strerror}"
            raise UsageError(msg, next_step="name a file of NAME=VALUE lines") from None
        lines += [line for line in text.splitlines() if line.strip() and line.lstrip()[0] != "#"]
    return tuple(host_values([*lines, *entries], os.environ))


def streams_for(*, interactive: bool, tty: bool, whole: bool) -> Streams:
    """Our side of a process's streams. Raises UsageError for -t where there is no terminal."""
    for number in range(3):  # a closed one would be taken by the next file that is opened
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if tty:
        from pytest_sandbox.runtimes.oci.terminal import Terminal

        return Terminal(interactive=interactive)
    from pytest_sandbox.runtimes.oci.foreground import Pipes

    return Pipes(interactive=interactive, whole=whole)


def say(text: str) -> None:
    """One line of our own on stderr, without control characters."""
    line = printable(" ".join(text.split())).encode("utf-8", "backslashreplace")
    with contextlib.suppress(OSError):
        os.write(2, b"pytest-sandbox: " + line + b"\n")


def complain(wrong: SandboxError) -> None:
    """An error in one line."""
    say(f"{wrong.what}; next: {wrong.next_step}" if wrong.next_step else wrong.what)


class Ended:
    """How a command line ended: `status` is set where it was not by its command."""

    status = 0


@contextlib.contextmanager
def engine_errors() -> Iterator[Ended]:
    """Tell errors: status 125 for what is not the command's, 126 or 127 where it cannot be run."""
    from pytest_sandbox.runtimes.oci.containers.start import Refused
    from pytest_sandbox.runtimes.oci.foreground import Stopped

    ended = Ended()
    try:
        yield ended
    except Refused as refused:
        why = "there is no such command in the sandbox"
        if refused.status != 127:
            why = "it cannot be executed: a folder, or no program"
        say(f"{refused.program!r}: {why}")
        ended.status = refused.status
    except Stopped as stopped:
        ended.status = 128 + stopped.number
    except SandboxError as wrong:
        complain(wrong)
        ended.status = ENGINE
    except OSError as wrong:
        say(f"{wrong.strerror or wrong}{f': {wrong.filename}' if wrong.filename else ''}")
        ended.status = ENGINE


def put(line: str) -> None:
    """A line on stdout."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def each(names: Sequence[str], work: Callable[[Container], str | None]) -> NoReturn:
    """Do something with every sandbox that is named, print what it gives, and leave: with 1 if one
    of them failed.
    """
    found, failed = swept(), False
    for name in names:
        try:
            line = work(found.find(name))
        except SandboxError as wrong:
            complain(wrong)
            failed = True
        else:
            if line is not None:
                put(line)
    sys.exit(int(failed))

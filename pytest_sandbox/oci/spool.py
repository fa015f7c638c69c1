"""A blob on its way into the store, read while it is written.

The download never waits for who unpacks: what comes goes to a file, and a feeder behind it moves
the pages of that file into a pipe. Memory stays small whatever is slower.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_sandbox.oci.store.blobs import BlobWriter

_PIPE: Final = 1 << 20
_STEP: Final = 1 << 20
_WORTH_WAKING: Final = 1 << 19
"""A feeder is woken for so many bytes, not for each block: that costs more than moving them."""
_NEVER: Final = 1 << 62


class Stopped(Exception):
    """The bytes are not wanted any more."""


class Spool:
    """A sink for a blob's bytes, with readers.

    `begin` opens the file that is written; a source that starts anew gets another one, and readers
    of the first end.
    """

    def __init__(self, begin: Callable[[], BlobWriter]) -> None:
        self._begin = begin
        self._state = threading.Condition()
        self._writer = begin()
        self._ended = False
        self._stopped = False
        self._error: BaseException | None = None
        self._wake_at = _NEVER
        self.generation = 0

    # --- the source's side ------------------------------------------------------------------

    def write(self, block: bytes | memoryview, /) -> None:
        """Take the next bytes. Raises Stopped if they are not wanted any more."""
        with self._state:
            if self._stopped:
                raise Stopped
            self._writer.write(block)
            if self._writer.size >= self._wake_at:
                self._wake_at = _NEVER
                self._state.notify_all()

    def restart(self) -> None:
        """Forget all bytes: the blob comes again from its start."""
        with self._state:
            if self._stopped:
                raise Stopped
            before, self._writer = self._writer, self._begin()
            self.generation += 1
            self._state.notify_all()
        before.close()

    def end(self, error: BaseException | None = None) -> None:
        """There is no more: all bytes are there and verified, or something went wrong."""
        with self._state:
            if error is None:
                try:
                    self._writer.check()
                except Exception as wrong:
                    error = wrong
            self._error = error
            self._ended = True
            self._state.notify_all()

    # --- the readers' side ------------------------------------------------------------------

    def missing(self, wanted: int) -> int:
        """How many of `wanted` bytes are still to come; none once it has ended."""
        with self._state:
            return 0 if self._ended else wanted - self._writer.size

    def wait(self) -> None:
        """Wait for the end. Raises what went wrong."""
        with self._state:
            self._state.wait_for(lambda: self._ended)
            if self._error is not None:
                raise self._error

    def stop(self) -> None:
        """Let the source end at its next block, and throw away what came."""
        with self._state:
            self._stopped = True
            self._state.notify_all()
            self._writer.close()

    def publish(self) -> None:
        """Make what came the store's blob; `wait` before."""
        with self._state:
            self._writer.publish()

    def feed(self, pipe: int, generation: int) -> bool:
        """Move the bytes of one generation into a pipe as they come; whether it got all of them.

        It did not if its reader is gone, the source started anew, or something went wrong.
        """
        with contextlib.suppress(OSError):
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE)
        with self._state:
            if self.generation != generation or self._stopped:
                return False
            writer = self._writer
            file = os.dup(writer.descriptor)
        offset = 0
        try:
            while (there := self._beyond(writer, offset, generation)) is not None:
                if there == offset:
                    return True
                while offset < there:
                    offset += os.splice(file, pipe, min(there - offset, _STEP), offset_src=offset)
            return False
        except BrokenPipeError:
            return False
        finally:
            os.close(file)

    def _beyond(self, writer: BlobWriter, offset: int, generation: int) -> int | None:
        """Wait for bytes behind `offset`: how many there are in all (no more than before: this is
        the end); None where they are not to be read on.
        """
        with self._state:
            while True:
                if self._stopped or self._error is not None or self.generation != generation:
                    return None
                if writer.size >= offset + _WORTH_WAKING or self._ended:
                    return writer.size
                self._wake_at = min(self._wake_at, offset + _WORTH_WAKING)
                self._state.wait()

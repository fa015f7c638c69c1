"""SIGTERM ends a run like Ctrl-C does: pytest itself runs no teardown on it."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from types import FrameType

_STATUS = 128 + signal.SIGTERM


def end_on_sigterm(config: pytest.Config) -> None:
    """Let SIGTERM unwind the run with exit status 143. Somebody else's handler is left alone."""
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        return

    def stop(number: int, frame: FrameType | None) -> None:
        del number, frame
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the teardown is under way
        pytest.exit("ended by SIGTERM", returncode=_STATUS)

    signal.signal(signal.SIGTERM, stop)

    def restore() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    config.add_cleanup(restore)

"""The processes of a sandbox, as its control shell sees them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pytest_sandbox.runtimes import processes, shell

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_sandbox.runtimes.control import Control
    from pytest_sandbox.runtimes.processes import Process


class ControlSight:
    """Through the control shell. Raises ControlLost."""

    def __init__(self, control: Control) -> None:
        self._control = control

    def table(self) -> dict[int, Process]:
        lines = self._control.call(shell.dump_processes())
        return processes.parse_table(line.decode("utf-8", "replace") for line in lines)

    def signal(self, name: str, pids: Sequence[int]) -> None:
        self._control.call(shell.send_signal(name, pids))

    def wait(self) -> None:
        time.sleep(0.002)

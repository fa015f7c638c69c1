"""The launcher that drives runc or crun."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from typing import TYPE_CHECKING

from pytest_sandbox.runtimes.oci import first_process
from pytest_sandbox.runtimes.oci.engine_cli import (
    EngineCli,
    EngineRefused,
    exec_status,
    make_states,
    start_error,
)

if TYPE_CHECKING:
    from pytest_sandbox.oci.supervisor import Call
    from pytest_sandbox.runtimes.oci.launchers.base import Bundle


class EngineLauncher:
    """See Launcher. With a terminal, its descriptor is said to the caller as `console`."""

    brings_init = False

    def __init__(self, engine: str, name: str, room: str, *, rootless: bool) -> None:
        self.group = name
        self._cli = EngineCli(engine, make_states(room), rootless=rootless)
        self._log = os.devnull
        self._pid = 0

    def create(self, call: Call, bundle: Bundle) -> int:
        self._log = str(bundle.place / "log")
        text = json.dumps(bundle.spec)
        (bundle.place / "config.json").write_text(text, encoding="utf-8")
        words = ["create", "--bundle", str(bundle.place), "--no-new-keyring"]
        pid_file = first_process.file_of(bundle.folder)
        words += ["--pid-file", str(pid_file)]
        console: socket.socket | None = None
        if bundle.spec["process"]["terminal"]:
            console = socket.socket(socket.AF_UNIX)
            console.bind(str(bundle.place / "console"))
            console.listen(1)
            words += ["--console-socket", str(bundle.place / "console")]
        # With a console the engine wants no other terminal.
        stdio = () if console is not None else bundle.stdio
        try:
            what = "create the sandbox"
            self._cli.run([*words, bundle.id], log=self._log, stdio=stdio, what=what)
        except EngineRefused as refused:
            raise start_error(refused) from None
        if console is not None:
            _send_console(call, console)
        self._pid = int(pid_file.read_text(encoding="ascii"))
        return self._pid

    def start(self) -> int:
        try:
            self._cli.start(self.group, self._pid, log=self._log)
        except EngineRefused as refused:
            status = exec_status(refused.text)
            if status is None:
                raise start_error(refused) from None
            return status
        return 0

    def undo(self) -> None:
        with contextlib.suppress(Exception):
            self._cli.run(["delete", "--force", self.group], log=os.devnull, what="undo")


def _send_console(call: Call, console: socket.socket) -> None:
    with console:
        console.settimeout(10)
        end, _ = console.accept()
        with end:
            _, fds, _, _ = socket.recv_fds(end, 4096, 1)
        call.send({"console": True}, fds)
        for descriptor in fds:
            os.close(descriptor)

"""What an engine or an image cannot do, as it turns out: learned once, then respected."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING, Final

from pytest_sandbox.runtimes import docker_quick

if TYPE_CHECKING:
    from pytest_sandbox.limits import Limits

SHELL: Final = "/bin/sh"


class Adapted:
    """The bounds of one engine. Nothing here weakens the isolation of a sandbox."""

    def __init__(self, *, fast_path: bool) -> None:
        self.fast_path = fast_path
        """Whether a folder of this host can be mounted, for the FIFOs of the fast path."""
        self.nofile: int | None = None
        self.nproc: int | None = None
        self.no_disk_limit = False
        self.without_shell: set[str] = set()
        self._endpoint = ""

    def meet(self, endpoint: str) -> None:
        """Learn what can be told before anything fails."""
        self._endpoint = endpoint
        self.nofile = docker_quick.bound(endpoint, "Max open files")

    def clamp(self, limits: Limits) -> Limits:
        """The limits with no more open files than the engine may give."""
        if self.nofile is None:
            return limits
        return limits.override(nofile=min(self.nofile, limits.nofile))

    def lacks_shell(self, image: str, text: str) -> bool:
        """Note that an image has no shell, if that is what the engine says."""
        words = (f'"{SHELL}"', f"exec {SHELL} failed", "failed to exec pid1: No such file")
        if image in self.without_shell or not any(word in text for word in words):
            return False
        self.without_shell.add(image)
        return True

    def give_in(self, limits: Limits, text: str) -> bool:
        """Learn from an error's text; True when it is worth another try."""
        low = text.lower()
        if "rlimit type 6" in low and self.nproc is None:
            # Podman asks for more processes of a user than it may give; the pids limit counts.
            own = docker_quick.bound(self._endpoint, "Max processes")
            self.nproc = own or resource.getrlimit(resource.RLIMIT_NPROC)[1]
            return True
        if "rlimit" in low:
            own = min(limits.nofile, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
            if self.nofile is None or own < self.nofile:
                self.nofile = own
                return True
        about_disk = any(word in low for word in ("storage-opt", "storage opt", "pquota"))
        if about_disk and not self.no_disk_limit:
            self.no_disk_limit = True
            return True
        if self.fast_path and "pytest-sandbox-" in low and "bind source path" in low:
            self.fast_path = False  # the engine sees another file system
            return True
        return False

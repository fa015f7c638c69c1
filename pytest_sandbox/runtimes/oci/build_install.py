"""The steps of a build that install packages: with lists and archives that builds share."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from pytest_sandbox.errors import Blame
from pytest_sandbox.images.installing import KEEPING
from pytest_sandbox.runtimes.build_blame import blame_of
from pytest_sandbox.runtimes.oci.build_packages import KeptPackages, ground_key

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from pytest_sandbox.oci.store import Store, Work
    from pytest_sandbox.runtimes.base import BuildRequest
    from pytest_sandbox.runtimes.oci.build_packages import Generation, Shown
    from pytest_sandbox.runtimes.oci.build_run import Ran
    from pytest_sandbox.runtimes.oci.order import MountOrder


class Sandbox(Protocol):
    """Runs a command over the layers so far; its folder, with what it changed."""

    def __call__(
        self, argv: tuple[str, ...], env: Mapping[str, str], mounts: tuple[MountOrder, ...] = ()
    ) -> tuple[Path, Ran]:
        """`mounts` are shown besides."""


def shares(request: BuildRequest, snapshotter: str) -> bool:
    """Whether a build uses what is shared: it needs overlays, and a network to fill it."""
    known = request.target.family in KEEPING
    return known and snapshotter == "overlay" and request.network != "none"


def ground_of(request: BuildRequest, **parts: Any) -> str:
    """The key of what the lists of packages depend on, at a point of the build of `request`."""
    files = {
        name: hashlib.sha256(data).hexdigest()
        for name, data in sorted(request.files.items())
        if name != "Dockerfile"
    }
    seen = {"arch": request.target.arch, "network": request.network, "files": files}
    return ground_key(request.target.family, {**seen, **parts})


@dataclass(slots=True)
class Packages:
    """The packages of one build, at the point `ground` of it. `check` raises for a command that
    failed, `heard` gives what the last one said.
    """

    store: Store
    work: Work
    request: BuildRequest
    ground: str
    env: Mapping[str, str]
    sandbox: Sandbox
    check: Callable[[Ran], None]
    heard: Callable[[], str]

    def ready(self, sets: Sequence[Sequence[str]]) -> Generation:
        """Lists in which all sets were fetched. Raises BuildFailed."""
        kept = self._kept()
        return kept.ready(self.ground, sets, since=self.request.lists_since)

    def install(
        self, argv: tuple[str, ...], packages: tuple[str, ...], say: Callable[[str], None]
    ) -> tuple[Path, Ran]:
        """Run an instruction that installs packages; as Sandbox.

        Lists that were kept may be too old for what the mirror has: where it fails, and that can be
        the reason, the lists are got anew, and it is run once more.
        """
        request, kept = self.request, self._kept()
        if request.ground:  # on another image: its own layers are nothing to fetch with
            found = kept.latest(request.ground, since=request.lists_since)
            if found is None:
                return self.sandbox(argv, self.env)
            with kept.shown(found) as shown:
                return self.sandbox(argv, self.env, shown.mounts)
        generation = kept.ready(self.ground, [packages], since=request.lists_since)
        with kept.shown(generation) as shown:
            folder, ran = self.sandbox(argv, self.env, shown.mounts)
        if not ran.status or ran.timed_out or self.ground in kept.fetched or not self._stale():
            return folder, ran
        say("once more with new package lists")
        generation = kept.ready(self.ground, [packages], since=time.time())
        with kept.shown(generation) as shown:
            return self.sandbox(argv, self.env, shown.mounts)

    def _kept(self) -> KeptPackages:
        def run(script: str, shown: Shown) -> None:
            self.check(self.sandbox(("/bin/sh", "-c", script), self.env, shown.mounts)[1])

        return KeptPackages(self.store, self.work, self.request.target.family, run)

    def _stale(self) -> bool:
        """Whether what a command said can come from package lists that are too old."""
        blame, reason = blame_of(self.heard())
        return bool(reason) and blame in {Blame.RECIPE, Blame.UPSTREAM}

"""The images of a session: planned together, built at once, each waited for by who needs it.

The first image that is asked for has all those planned that are expected: what they have in common
is installed once (images/planning.py), and independent builds run side by side, no more of them
than there are cores, and never so many that a mirror is pestered. Where an engine cannot tell what
sets of packages consist of, each is built on its own base, side by side all the same.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

from pytest_sandbox.errors import Blame, ImageUnavailable, SandboxError
from pytest_sandbox.images.name import PREFIX, image_hash
from pytest_sandbox.runtimes.bases import at_hand
from pytest_sandbox.runtimes.images import beginning_request, ensure_image, is_at_hand
from pytest_sandbox.runtimes.last_use import MAX_AGE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from pytest_sandbox.clock import Clock
    from pytest_sandbox.images.planning import Stage
    from pytest_sandbox.images.sharing import Upon
    from pytest_sandbox.images.spec import ImageSpec
    from pytest_sandbox.limits import Limits
    from pytest_sandbox.runtimes.base import BuildRequest, Network, PullPolicy, Runtime
    from pytest_sandbox.runtimes.images import EnsuredImage

    Say = Callable[[str], None]

MOST_AT_ONCE: Final = 4
"""So many builds of a run ask a mirror at the same time, however many cores there are."""
_MOMENT: Final = 0.3
_ROUNDS: Final = 3
"""So often a plan is made anew without what turned out to be no set of its own."""


@runtime_checkable
class ResolvesPackages(Protocol):
    """A runtime that can tell what sets of packages consist of."""

    def resolve_packages(
        self, request: BuildRequest, sets: Sequence[Sequence[str]], say: Say
    ) -> tuple[str, list[tuple[str, ...] | None]]:
        """On the system that `request` would build: the key of its package lists (empty where there
        are none), and of each set a line an archive; None for one that cannot be had.

        All of them are fetched. Raises BuildFailed.
        """
        ...


@dataclass(frozen=True, slots=True)
class Rules:
    """How the images of a run are made; see ensure_image."""

    prefix: str = PREFIX
    rebuild: bool = False
    rebuild_token: str = ""
    pull: PullPolicy = "missing"
    offline: bool = False
    max_age: float = MAX_AGE
    network: Network = "bridge"
    limits: Limits | None = None
    timeout: float = 900.0
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    worker: int = 0
    workers: int = 1
    """Which one of how many processes of the run this is."""


def _silent(line: str) -> None:
    del line


def builds_at_once(workers: int) -> int:
    """How many builds each of so many processes may run: a run's share is divided among them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    return max(min(cores, MOST_AT_ONCE) // workers, 1)


class ImageBuilds:
    """Images by spec. `expected` gives the specs that will be asked for, in that order, as far as
    they are known; it is called once, by who first asks for an image that is missing.

    `say` is called by who waits for an image, never from another thread.
    """

    def __init__(
        self,
        runtime: Runtime,
        rules: Rules,
        *,
        expected: Callable[[], Iterable[ImageSpec]] = tuple,
        say: Say = _silent,
    ) -> None:
        self._runtime = runtime
        self._rules = rules
        self._expected = expected
        self._say = say
        self._lock = threading.Lock()
        self._planned = self._closed = False
        self._pool: ThreadPoolExecutor | None = None
        self._futures: dict[str, Future[EnsuredImage]] = {}
        self._said: SimpleQueue[str] = SimpleQueue()

    def get(self, spec: ImageSpec, clock: Clock | None = None) -> EnsuredImage:
        """The spec's image; raises what ensure_image raises. What failed is tried again when it is
        asked for again.
        """
        key = image_hash(spec)
        with self._lock:
            if not self._planned and self._missing(spec):
                self._planned = True
                self._begin(spec)
            future = self._futures.get(key)
        if future is None:
            return self._ensure(spec, self._say, clock=clock)
        try:
            while not wait([future], timeout=_MOMENT).done:
                self._tell()
                self._still_open()
            return future.result()
        except BaseException:
            with self._lock:
                self._futures.pop(key, None)
            raise
        finally:
            self._tell()

    def _tell(self) -> None:
        """Say what the builds have said meanwhile."""
        with suppress(Empty):
            while True:
                self._say(self._said.get_nowait())

    def close(self) -> None:
        """What was not begun is not built any more, and what is under way ends at its next step."""
        with self._lock:
            self._planned = self._closed = True
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def join(self) -> bool:
        """After `close`, and that of the runtime: wait for the builds; whether there were any."""
        busy = any(future.running() for future in self._futures.values())
        if self._pool is not None:
            self._pool.shutdown(wait=True)
        return busy

    def _note(self, line: str) -> None:
        """What a build behind says."""
        self._still_open()
        self._said.put(line)

    def _still_open(self) -> None:
        if self._closed:
            msg = "the run is over"
            raise ImageUnavailable(msg, blame=Blame.HOST, next_step="run it again")

    # --- planning ---------------------------------------------------------------------------

    def _begin(self, first: ImageSpec) -> None:
        """Plan, and start to build, all that is expected and missing, if it is more than one."""
        specs = {image_hash(first): first}
        for spec in self._expected():
            specs.setdefault(image_hash(spec), spec)
        missing = {key: spec for key, spec in specs.items() if self._missing(spec)}
        if len(missing) < 2:
            return
        self._pool = ThreadPoolExecutor(
            builds_at_once(self._rules.workers), thread_name_prefix="pytest-sandbox-build"
        )
        left = dict(missing)
        for group in _groups(missing.values()):
            with suppress(SandboxError):  # its own build will say what is wrong
                for key in self._plan_group(group):
                    left.pop(key, None)
        for key, spec in left.items():
            self._futures[key] = self._pool.submit(self._ensure, spec, self._note)

    def _missing(self, spec: ImageSpec) -> bool:
        """Whether it is to be built, and its base is there: others are for who needs them."""
        rules, runtime = self._rules, self._runtime
        if spec.plain or at_hand(runtime, spec.base, spec.target, rules.pull) is None:
            return False
        return rules.rebuild or not is_at_hand(runtime, spec, rules.prefix, rules.max_age)

    def _plan_group(self, group: Sequence[ImageSpec]) -> Iterator[str]:
        """Submit the builds of specs that begin alike; the keys of those that were."""
        from pytest_sandbox.images import planning, sharing

        rules, runtime = self._rules, self._runtime
        if not isinstance(runtime, ResolvesPackages) or rules.offline or len(group) < 2:
            return
        request = beginning_request(
            runtime, group[0], environ=rules.environ, rebuild=rules.rebuild,
            network=rules.network, limits=rules.limits, timeout=rules.timeout,
        )  # fmt: skip
        if request is None:
            return
        self._say(f"planning {len(group)} images on {group[0].base}")
        names = [sharing.names_of(spec) for spec in group]
        ground, told = runtime.resolve_packages(request, names, self._say)
        if not ground:
            return
        specs, wanted = {}, {}
        for spec, lines in zip(group, told, strict=True):
            if lines is not None:
                specs[image_hash(spec)] = spec
                wanted[image_hash(spec)] = sharing.sizes_of(lines)
        stages = planning.plan(wanted)
        refused: set[frozenset[str]] = set()
        for _ in range(_ROUNDS):
            common = [stage.parts for stage in stages if not stage.key]
            wrong = self._not_as_they_are(request, common, group[0].target.arch)
            if not wrong:
                break
            refused |= wrong
            stages = planning.plan(wanted, refused)
        else:
            stages = planning.plan(wanted, common=False)
        stages = planning.rotated(stages, rules.worker, rules.workers)
        yield from self._submit(stages, specs, ground)

    def _not_as_they_are(
        self, request: BuildRequest, common: Sequence[frozenset[str]], arch: str
    ) -> set[frozenset[str]]:
        """The sets that cannot be installed for themselves: they would be another set then."""
        from pytest_sandbox.images import sharing

        if not common or not isinstance(self._runtime, ResolvesPackages):
            return set()
        names = [sharing.packages_of(parts, arch) for parts in common]
        told = self._runtime.resolve_packages(request, names, self._say)[1]
        return {
            parts
            for parts, lines in zip(common, told, strict=True)
            if lines is None or frozenset(sharing.sizes_of(lines)) != parts
        }

    def _submit(
        self, stages: Sequence[Stage], specs: Mapping[str, ImageSpec], ground: str
    ) -> Iterator[str]:
        """One build a stage, each begun when the one below it is done."""
        from pytest_sandbox.images import sharing

        like = next(iter(specs.values()))
        start = sharing.beginning(like)
        first: Future[EnsuredImage] | None = None if start.plain else Future()
        if first is not None:
            self._start(partial(self._staged, first, start, None, None, ground))
        made: list[Future[EnsuredImage]] = [Future() for _ in stages]
        for stage, future in zip(stages, made, strict=True):
            spec = specs[stage.key] if stage.key else sharing.common_spec(like, stage.parts)
            below = made[stage.upon] if stage.upon >= 0 else first
            task = partial(self._staged, future, spec, stage, below, ground)
            if below is None:
                self._start(task)
            else:
                below.add_done_callback(partial(_after, partial(self._start, task)))
            if stage.key:
                self._futures[stage.key] = future
                yield stage.key

    def _start(self, task: Callable[[], None]) -> None:
        assert self._pool is not None
        with suppress(RuntimeError):  # the run is over
            self._pool.submit(task)

    def _staged(
        self,
        future: Future[EnsuredImage],
        spec: ImageSpec,
        stage: Stage | None,
        below: Future[EnsuredImage] | None,
        ground: str,
    ) -> None:
        """Build one, on what is below it; without a stage, what all of them begin with."""
        from pytest_sandbox.images import sharing

        def upon() -> Upon | None:
            if stage is None or below is None or below.exception() is not None:
                return None  # what is wrong is told where somebody needs it
            base = below.result().info.name
            if stage.upon < 0:
                return sharing.upon_beginning(spec, base, ground)
            if stage.key:
                return sharing.upon(spec, stage.parts, base, ground)
            return sharing.upon_common(spec, base, ground)

        try:
            future.set_result(self._ensure(spec, self._note, upon))
        except BaseException as error:
            future.set_exception(error)

    def _ensure(
        self,
        spec: ImageSpec,
        say: Say,
        upon: Callable[[], Upon | None] | None = None,
        clock: Clock | None = None,
    ) -> EnsuredImage:
        from pytest_sandbox.clock import OFF

        rules = self._rules
        return ensure_image(
            self._runtime,
            spec,
            prefix=rules.prefix,
            rebuild=rules.rebuild,
            rebuild_token=rules.rebuild_token,
            pull=rules.pull,
            offline=rules.offline,
            max_age=rules.max_age,
            build_network=rules.network,
            build_limits=rules.limits,
            build_timeout=rules.timeout,
            say=say,
            environ=rules.environ,
            clock=clock or OFF,
            upon=upon,
        )


def _groups(specs: Iterable[ImageSpec]) -> list[list[ImageSpec]]:
    """The specs that may stand on each other, by group."""
    from pytest_sandbox.images.sharing import can_share, group_of

    found: dict[tuple[object, ...], list[ImageSpec]] = {}
    for spec in specs:
        if can_share(spec):
            found.setdefault(group_of(spec), []).append(spec)
    return list(found.values())


def _after(start: Callable[[], None], below: Future[EnsuredImage]) -> None:
    del below
    start()

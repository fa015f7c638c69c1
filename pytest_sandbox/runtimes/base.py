"""What every runtime offers: the Protocols, and the plain data that crosses them.

A runtime builds images and starts sandboxes. Nothing above this package knows which engine does
it. One contract suite (tests/contract) holds every runtime to the same behaviour.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Final, Literal, Protocol, runtime_checkable

from pytest_sandbox.limits import Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from pytest_sandbox.targets import Target

LimitName = Literal["memory", "pids", "disk", "output", "time"]
Network = Literal["none", "bridge", "host"]
PullPolicy = Literal["missing", "always", "never"]


HEAD: Final = 1 << 20
TAIL: Final = 1 << 20
LOG_LIMIT: Final = 64 << 20
"""Of each stream this many bytes of head and of tail are kept; a full log file holds at most
LOG_LIMIT bytes.
"""


@dataclass(frozen=True, slots=True, repr=False)
class Result:
    """What one command did.

    `returncode` is the exit status: 127 for a missing command, 126 for one that cannot be
    executed, 128 + n for one that signal n ended. `truncated` says that the middle of a stream was
    dropped (1 MiB of head and of tail are kept); `log` is the file with more of it, if one was
    asked for. `limit` names the limit that ended or harmed the command, from the cgroup's own
    record. `duration` is in seconds.
    """

    argv: tuple[str, ...]
    returncode: int
    stdout_bytes: bytes = b""
    stderr_bytes: bytes = b""
    truncated: bool = False
    limit: LimitName | None = None
    duration: float = 0.0
    log: Path | None = None

    @property
    def stdout(self) -> str:
        """Standard output as UTF-8; bytes that are none become surrogates (PEP 383)."""
        return self.stdout_bytes.decode("utf-8", "surrogateescape")

    @property
    def stderr(self) -> str:
        """Standard error as UTF-8; bytes that are none become surrogates (PEP 383)."""
        return self.stderr_bytes.decode("utf-8", "surrogateescape")

    @property
    def ok(self) -> bool:
        """Exit status 0, and no limit was hit."""
        return self.returncode == 0 and self.limit is None

    def __repr__(self) -> str:
        extra = f" limit={self.limit}" if self.limit else ""
        return (
            f"<Result {list(self.argv)!r} returncode={self.returncode}{extra} {self.duration:.3f}s>"
        )


@dataclass(frozen=True, slots=True)
class Mount:
    """A folder or file of the host inside the sandbox: read-only unless `read_only=False`."""

    source: Path
    target: str
    read_only: bool = True


@dataclass(frozen=True, slots=True)
class Owner:
    """Who owns what a run leaves behind: boot id + pid namespace + pid + start time (clock ticks
    since boot).
    """

    run: str
    boot: str
    namespace: str
    pid: int
    started: int


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """Everything a runtime needs to start one throwaway system from an image."""

    image: str
    target: Target
    limits: Limits
    network: Network = "none"
    no_new_privileges: bool = False
    env: Mapping[str, str] = field(default_factory=dict)
    """The environment of every command, on top of the image's own."""
    user: str = ""
    cwd: str = "/"
    mounts: tuple[Mount, ...] = ()
    tmpfs: Mapping[str, int] = field(default_factory=dict)
    """Path -> size in bytes."""
    labels: Mapping[str, str] = field(default_factory=dict)
    purpose: str = ""
    """A word or two for names and logs, like `jq-install`."""


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """An image that is at hand. `digest` is the engine's content id; `created` is a POSIX time."""

    name: str
    digest: str
    arch: str
    created: float
    size: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """One image build: the context holds exactly `files` (name -> bytes), the Dockerfile among
    them.
    """

    name: str
    target: Target
    dockerfile: str
    files: Mapping[str, bytes]
    labels: Mapping[str, str] = field(default_factory=dict)
    build_args: Mapping[str, str] = field(default_factory=dict)
    network: Network = "bridge"
    limits: Limits = field(default_factory=Limits)
    timeout: float = 900.0
    lists_since: float = 0.0
    """Package lists that builds share are used if they were got after this POSIX time."""
    ground: str = ""
    """Where the base is one that others share: whose package lists to use (see Runtime builds)."""


@dataclass(frozen=True, slots=True)
class RuntimeInfo:
    """What an engine says of itself."""

    name: str
    version: str
    endpoint: str
    rootless: bool
    cgroups: str
    arches: tuple[str, ...]
    """The architectures that it can run; its own comes first."""
    cpus: int
    memory: int
    storage: str = ""
    disk_limit: bool = False
    notes: tuple[str, ...] = ()
    engine: str = ""
    """The program that starts sandboxes where there is no daemon: `runc 1.1.5`."""
    weak_limits: tuple[str, ...] = ()
    """The limits that no control group holds here; weaker means do, which can be evaded."""
    weak_why: str = ""
    weak_step: str = ""
    """Why that is so, and what would change it."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What differs from the image: sorted absolute paths. The plugin's own files and mount points
    never show.

    A folder stands under `changed` only for itself (mode, owner), not because something in it
    changed.
    """

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.removed)


@dataclass(frozen=True, slots=True)
class Stats:
    """Use of resources so far: peak memory and bytes written to disk in bytes, CPU time in
    seconds.
    """

    memory_peak: int
    cpu_seconds: float
    bytes_written: int


@runtime_checkable
class System(Protocol):
    """One running throwaway system. `Sandbox` is what tests hold; this is what a runtime gives it.
    """

    id: str
    spec: SandboxSpec

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        input: bytes | None = None,
        log: Path | None = None,
        merge: bool = False,
    ) -> Result:
        """Run one command to its end (`merge`: stderr goes into stdout, in order).

        Raises SandboxTimeout (the command's whole tree is dead then, the sandbox usable),
        SandboxGone, UnknownUser, MissingDirectory.
        """
        ...

    def put(self, tar: IO[bytes], path: str) -> None:
        """Unpack a tar stream under the existing folder `path`."""
        ...

    def get(self, path: str) -> tuple[PathStat, Iterable[bytes]]:
        """A tar stream of `path` (its members start with its last name). Raises FileNotFoundError.
        """
        ...

    def stat(self, path: str) -> PathStat | None:
        """What `path` is (a symlink is itself), or None where there is nothing."""
        ...

    def changes(self) -> Changes: ...

    def snapshot(self, *, name: str | None = None, labels: Mapping[str, str] | None = None) -> str:
        """A copy-on-write point of the file system: the name of an image to start others from.

        Without `name` it belongs to this run and ends with it; with one it stays.
        """
        ...

    def logs(self) -> str:
        """What background processes and the sandbox's own init wrote, at most 1 MiB of tail."""
        ...

    def stats(self) -> Stats: ...

    def alive(self) -> bool: ...

    def begin(self, spec: SandboxSpec) -> bool:
        """It was started ahead, and is used from now on: as `spec` says, which differs from its own
        in the purpose and the wall clock alone. The clock starts here. False where it has ended.
        """
        ...

    def close(self) -> None:
        """End it at once and remove everything of it; may be called twice."""
        ...


@dataclass(frozen=True, slots=True)
class PathStat:
    """A file's name, size in bytes, `st_mode` and the target of a symlink."""

    name: str
    size: int
    mode: int
    link: str = ""


class Runtime(Protocol):
    """An engine that builds images and starts sandboxes."""

    name: str
    starts_ahead: bool
    """Whether systems may be started before they are asked for, from other threads than the
    test's. A runtime without this attribute is taken for one that does not.
    """

    def info(self) -> RuntimeInfo:
        """Ask the engine; raises RuntimeUnavailable."""
        ...

    def find_image(self, reference: str) -> ImageInfo | None: ...

    def pull(self, reference: str, target: Target, say: Callable[[str], None]) -> ImageInfo:
        """Fetch an image from its registry; raises ImageUnavailable."""
        ...

    def load_rootfs(
        self, tar: IO[bytes], reference: str, target: Target, labels: Mapping[str, str]
    ) -> ImageInfo:
        """Import a root file system (an uncompressed tar) as a one-layer image under `reference`.
        """
        ...

    def build(self, request: BuildRequest, say: Callable[[str], None]) -> ImageInfo:
        """Build and tag; a build that fails or times out leaves nothing. Raises BuildFailed."""
        ...

    def remove_image(self, reference: str) -> None:
        """Remove an image of ours; what is gone already is no error."""
        ...

    def images(self) -> list[ImageInfo]:
        """Every image that carries our label, snapshots included."""
        ...

    def start(self, spec: SandboxSpec, owner: Owner) -> System:
        """Start a throwaway system. Raises ImageUnavailable, RuntimeUnavailable."""
        ...

    def sweep(self, run: str) -> int:
        """Remove everything that carries this run's label; the number of things removed."""
        ...

    def reap(self, is_dead: Callable[[Owner, float], bool]) -> int:
        """Remove what dead owners left (`is_dead(owner, created)`); the number of things removed.
        """
        ...

    def close(self) -> None: ...

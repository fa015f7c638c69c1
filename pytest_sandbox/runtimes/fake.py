"""A runtime without an engine: commands are scripted, files live in memory, calls are recorded.

For testing a conftest or a plugin, never for proving an installation.
"""

from __future__ import annotations

import hashlib
import itertools
import posixpath
import secrets
import shlex
import time
from dataclasses import dataclass, field, replace
from typing import IO, TYPE_CHECKING, Final, TypeAlias

from pytest_sandbox.errors import (
    Blame,
    ImageUnavailable,
    MissingDirectory,
    SandboxGone,
    SandboxTimeout,
)
from pytest_sandbox.runtimes.base import Changes, ImageInfo, PathStat, Result, RuntimeInfo, Stats
from pytest_sandbox.runtimes.fake_files import Files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from pytest_sandbox.runtimes.base import BuildRequest, Owner, SandboxSpec
    from pytest_sandbox.targets import Target

Answer: TypeAlias = "Result | int | str | bytes | Exception"
"""What a command does: a whole Result, an exit status, its standard output, or an exception to
raise.
"""

Script: TypeAlias = "Mapping[str | tuple[str, ...], Answer] | Callable[[tuple[str, ...]], Answer]"


@dataclass(frozen=True, slots=True)
class Call:
    """One command that was run, as the runtime was asked for it."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str
    user: str
    input: bytes | None
    timeout: float | None


class FakeRuntime:
    """A Runtime whose commands do what `results` says.

    `results` is a callable (argv -> answer), or a mapping whose keys are looked up in this order:
    the argv as a tuple, the command line as a shell would write it (`jq --version`), the text of a
    `/bin/sh -c TEXT` (as verify runs a recipe's command), the command's name alone. What is not
    found gets `default`. Of what a command would do to files only `mkdir -p` is carried out, when
    it exits with 0: a step's folder has to be there. `images` are the references that are at hand
    (None: all of them), `files` what every image holds beside the usual folders. Everything that is
    done with it stands in `calls`, `builds`, `pulls` and `systems`.
    """

    name = "fake"
    starts_ahead = False

    def __init__(
        self,
        images: Iterable[str] | None = None,
        results: Script | None = None,
        *,
        default: Answer = 0,
        files: Mapping[str, str | bytes] | None = None,
        arches: Sequence[str] = ("amd64",),
        cpus: int = 2,
        memory: int = 8 << 30,
    ) -> None:
        self._results: Script = {} if results is None else results
        self._default = default
        self._all = images is None
        self._files = Files(files)
        self._images: dict[str, ImageInfo] = {}
        self._snapshots: dict[str, tuple[Files, str]] = {}
        self._info = RuntimeInfo(
            name="fake",
            version="1",
            endpoint="fake://",
            rootless=True,
            cgroups="none",
            arches=tuple(arches),
            cpus=cpus,
            memory=memory,
            disk_limit=True,
        )
        self.calls: list[Call] = []
        self.builds: list[BuildRequest] = []
        self.pulls: list[str] = []
        self.systems: list[FakeSystem] = []
        for reference in images or ():
            self._add(reference, arches[0], _recorded_labels(reference))

    def _add(self, reference: str, arch: str, labels: Mapping[str, str] | None = None) -> ImageInfo:
        digest = "sha256:" + hashlib.sha256(reference.encode()).hexdigest()
        info = ImageInfo(reference, digest, arch, time.time(), labels=dict(labels or {}))
        self._images[reference] = info
        return info

    def info(self) -> RuntimeInfo:
        return self._info

    def find_image(self, reference: str) -> ImageInfo | None:
        if reference not in self._images and self._all:
            # An image of ours is there when it was built; any other is said to be there.
            if reference.startswith("tsuku/sandbox-"):
                return None
            self._add(reference, self._info.arches[0], _recorded_labels(reference))
        return self._images.get(reference)

    def pull(self, reference: str, target: Target, say: Callable[[str], None]) -> ImageInfo:
        self.pulls.append(reference)
        if not self._all:
            msg = f"{reference} is not among the images of this FakeRuntime"
            raise ImageUnavailable(msg, blame=Blame.NETWORK, next_step="add it to images=")
        say(f"pull {reference}")
        return self._add(reference, target.arch)

    def load_rootfs(
        self, tar: IO[bytes], reference: str, target: Target, labels: Mapping[str, str]
    ) -> ImageInfo:
        files = self._files.copy()
        files.put(tar, "/")
        self._snapshots[reference] = (files, "")
        return self._add(reference, target.arch, labels)

    def build(self, request: BuildRequest, say: Callable[[str], None]) -> ImageInfo:
        self.builds.append(request)
        say(f"build {request.name}")
        return self._add(request.name, request.target.arch, request.labels)

    def remove_image(self, reference: str) -> None:
        self._images.pop(reference, None)
        self._snapshots.pop(reference, None)

    def images(self) -> list[ImageInfo]:
        return [self._images[name] for name in sorted(self._images)]

    def start(self, spec: SandboxSpec, owner: Owner) -> FakeSystem:
        if self.find_image(spec.image) is None:
            msg = f"image {spec.image} is not on the engine"
            raise ImageUnavailable(msg, next_step="build or pull it first")
        files, _ = self._snapshots.get(spec.image, (self._files, ""))
        system = FakeSystem(self, spec, owner, files)
        self.systems.append(system)
        return system

    def keep(self, files: Files, name: str | None, run: str, labels: Mapping[str, str]) -> str:
        """Make a snapshot of a system's files; its name."""
        reference = name or f"tsuku/sandbox-snapshot:{secrets.token_hex(8)}"
        self._snapshots[reference] = (files.copy(), "" if name else run)
        self._add(reference, self._info.arches[0], labels)
        return reference

    def answer(self, argv: tuple[str, ...]) -> Answer:
        """What the script says for a command."""
        if callable(self._results):
            return self._results(argv)
        keys: list[str | tuple[str, ...]] = [argv, shlex.join(argv), argv[0]]
        if argv[:2] == ("/bin/sh", "-c") and len(argv) > 2:
            keys.insert(2, argv[2])
        for key in keys:
            if key in self._results:
                return self._results[key]
        return self._default

    def sweep(self, run: str) -> int:
        return self._remove(lambda owner, _created: owner.run == run)

    def reap(self, is_dead: Callable[[Owner, float], bool]) -> int:
        return self._remove(is_dead)

    def _remove(self, goes: Callable[[Owner, float], bool]) -> int:
        gone = [s for s in self.systems if s.alive() and goes(s.owner, s.created)]
        for system in gone:
            system.close()
        runs = {system.owner.run for system in gone}
        names = [name for name, (_, run) in self._snapshots.items() if run and run in runs]
        for name in names:
            self.remove_image(name)
        return len(gone) + len(names)

    def close(self) -> None:
        for system in self.systems:
            system.close()


def _recorded_labels(reference: str) -> dict[str, str]:
    """The labels of the base that was bootstrapped on this machine in the place of `reference`.

    Image names are made with what the user's record says of bases: an image of the fake that
    stands for one of them says the same, else it would be taken for somebody else's.
    """
    from pytest_sandbox.provision.bases import base_labels, recorded_bases
    from pytest_sandbox.runtimes.bases import base_name

    for base in recorded_bases():
        if base_name(base.reference, base.arch) == reference:
            return base_labels(base)
    return {}


def _folders_made(argv: tuple[str, ...]) -> list[str]:
    """What a command makes with `mkdir -p`: itself, or in the text of `/bin/sh -c TEXT NAME ...`
    with `$1` and so on filled in. What only a shell could tell is left out.
    """
    words = list(argv)
    if argv[:2] == ("/bin/sh", "-c") and len(argv) > 2:
        try:
            words = list(shlex.shlex(argv[2], posix=True, punctuation_chars=True))
        except ValueError:
            return []
        for number, value in enumerate(argv[4:13], 1):
            words = [word.replace(f"${number}", value) for word in words]
    found: list[str] = []
    for at, word in enumerate(words[:-1]):
        if word == "mkdir" and words[at + 1] == "-p" and (at == 0 or words[at - 1] in _PARTS):
            rest = itertools.takewhile(lambda one: one not in _PARTS, words[at + 2 :])
            found += [one for one in rest if one != "--" and "$" not in one]
    return found


_PARTS: Final = frozenset({"&&", ";", "||"})


@dataclass(slots=True, eq=False)
class FakeSystem:
    """A System of FakeRuntime; `files` is its file system, to look at and to change."""

    runtime: FakeRuntime
    spec: SandboxSpec
    owner: Owner
    base: Files
    id: str = field(default_factory=lambda: secrets.token_hex(32))
    created: float = field(default_factory=time.time)
    files: Files = field(init=False)
    _closed: bool = False

    def __post_init__(self) -> None:
        self.files = self.base.copy()

    def _check(self) -> None:
        if self._closed:
            msg = "the sandbox is closed"
            raise SandboxGone(msg, blame=Blame.HOST, next_step="use it before it is closed")

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
        if isinstance(argv, str):
            msg = f"argv is a list of words, not a string: run({argv.split()!r})"
            raise TypeError(msg)
        if not argv:
            msg = "argv is empty"
            raise ValueError(msg)
        self._check()
        words = tuple(argv)
        folder = posixpath.join("/", self.spec.cwd, cwd or "")
        environment = {**self.spec.env, **(env or {})}
        self.runtime.calls.append(
            Call(words, environment, folder, user or self.spec.user, input, timeout)
        )
        if not self.files.is_folder(folder):
            msg = f"cwd {folder!r} is no directory in the sandbox"
            raise MissingDirectory(msg)
        result = self._result(words, self.runtime.answer(words))
        if result.ok:
            for made in _folders_made(words):
                self.files.make_folders(posixpath.join(folder, made))
        if merge:
            both = result.stdout_bytes + result.stderr_bytes
            result = replace(result, stdout_bytes=both, stderr_bytes=b"")
        if log is not None and (result.stdout_bytes or result.stderr_bytes):
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_bytes(result.stdout_bytes + result.stderr_bytes)
            result = replace(result, log=log)
        if result.limit == "time":
            msg = f"the command ran longer than {timeout or self.spec.limits.timeout:g} s"
            raise SandboxTimeout(msg, result)
        return result

    @staticmethod
    def _result(argv: tuple[str, ...], answer: Answer) -> Result:
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, Result):
            return replace(answer, argv=argv)
        if isinstance(answer, int):
            return Result(argv, answer)
        data = answer.encode("utf-8", "surrogateescape") if isinstance(answer, str) else answer
        return Result(argv, 0, data)

    def put(self, tar: IO[bytes], path: str) -> None:
        self._check()
        self.files.put(tar, path)

    def get(self, path: str) -> tuple[PathStat, Iterable[bytes]]:
        self._check()
        return self.files.get(path)

    def stat(self, path: str) -> PathStat | None:
        self._check()
        return self.files.stat(path)

    def changes(self) -> Changes:
        self._check()
        return self.files.changes(self.base)

    def snapshot(self, *, name: str | None = None, labels: Mapping[str, str] | None = None) -> str:
        self._check()
        return self.runtime.keep(self.files, name, self.owner.run, labels or {})

    def logs(self) -> str:
        return ""

    def stats(self) -> Stats:
        self._check()
        return Stats(0, 0.0, 0)

    def begin(self, spec: SandboxSpec) -> bool:
        self.spec = spec
        return not self._closed

    def alive(self) -> bool:
        return not self._closed

    def close(self) -> None:
        self._closed = True

"""Carries out a plan's operations in a running system: the install phase."""

from __future__ import annotations

import io
import re
import tarfile
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Final, assert_never, cast

from pytest_sandbox.errors import (
    Blame,
    Phase,
    SandboxError,
    SandboxGone,
    SandboxTimeout,
    StepFailed,
)
from pytest_sandbox.plans.layout import base_environment
from pytest_sandbox.plans.model import (
    TOOLS_HOME,
    WORK,
    Command,
    Fetch,
    Notice,
    Operation,
    RequireCommand,
    RequirePackages,
    StepProgram,
    Unpack,
    WriteFile,
)
from pytest_sandbox.recipes.versions import at_least

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pytest_sandbox.plans.downloads import Downloader
    from pytest_sandbox.runtimes.base import Result, System

_WHERE_SCRIPT: Final = 'command -v -- "$1"'
_CHECKS = (RequireCommand, RequirePackages, Notice)


def step_environment() -> dict[str, str]:
    """The environment of steps, on top of the sandbox's own."""
    return {**base_environment(), "TSUKU_SANDBOX": "1"}


class GuidanceNeeded(StepFailed):
    """A command is missing that only a person can install; the recipe's own `manual` text says
    how.
    """

    blame = Blame.UNSUPPORTED


class RequirementMissing(StepFailed):
    """A command or a package that the plan needs is not in the system's image."""


def is_trusted(programs: Sequence[StepProgram]) -> bool:
    """Whether the programs only look at the system: nothing that a recipe wrote runs or is put
    there.

    Then install and verify can share one system; otherwise verify starts from a snapshot of it, so
    that nothing that a step left running can touch the verdict.
    """
    return all(
        isinstance(op, _CHECKS) or (isinstance(op, Command) and op.looks_only)
        for program in programs
        for op in program.operations
    )


def downloads(programs: Sequence[StepProgram]) -> bool:
    """Whether the programs fetch anything."""
    return any(isinstance(op, Fetch) for program in programs for op in program.operations)


@dataclass(slots=True)
class Installer:
    """Runs programs in `system`; `log` names the folder for full logs, `notices` collects what
    `manual` steps say.
    """

    system: System
    downloader: Downloader | None
    env: Mapping[str, str] = field(default_factory=step_environment)
    log: Path | None = None
    timeout: float = 0.0
    """What the install phase was given, in seconds, for the texts of errors."""
    deadline: float | None = None
    """time.monotonic() value at which the install phase must be over."""
    notices: list[str] = field(default_factory=list)
    results: list[tuple[str, Result]] = field(default_factory=list)
    """Label of the step and the result of each of its commands."""
    _placed: dict[str, Path] = field(default_factory=dict)
    _count: int = 0

    def install(self, programs: Sequence[StepProgram]) -> None:
        """Carry out every program in order. Raises StepFailed, DownloadError, SandboxTimeout,
        SandboxGone.
        """
        if not is_trusted(programs):
            self._plain(["mkdir", "-p", f"{TOOLS_HOME}/bin", f"{TOOLS_HOME}/tools/current", WORK])
        for program in programs:
            for operation in program.operations:
                try:
                    self._perform(operation, program.label)
                except SandboxTimeout as late:
                    what = late.what
                    if self.deadline is not None and time.monotonic() >= self.deadline:
                        what = f"ran longer than {self.timeout:g} s"
                    what = f"{what} in {program.label}"
                    raise SandboxTimeout(
                        what, late.result, phase=Phase.INSTALL, next_step=late.next_step
                    ) from late
                except SandboxGone as gone:
                    msg = f"{gone.what} in {program.label}"
                    raise SandboxGone(
                        msg,
                        limit=gone.limit,
                        phase=Phase.INSTALL,
                        blame=blame_of_limit(gone.limit) or gone.blame,
                        next_step=gone.next_step,
                        details=gone.details,
                    ) from gone
                except StepFailed as failed:
                    if not failed.step:
                        failed.step = program.label
                        failed.what = f"{failed.what} in {program.label}"
                    raise

    def _perform(self, operation: Operation, label: str) -> None:  # noqa: PLR0911 - one arm a kind
        match operation:
            case Command():
                return self._command(operation, label)
            case Fetch():
                return self._fetch(operation)
            case Unpack():
                return self._unpack(operation)
            case WriteFile():
                return self._write(operation.path, operation.text.encode(), operation.mode)
            case RequireCommand():
                return self._require_command(operation, label)
            case RequirePackages():
                return self._require_packages(operation)
            case Notice():
                self.notices.append(operation.text)
                return None
        assert_never(operation)

    # -- commands ------------------------------------------------------------------------------

    def _command(self, op: Command, label: str) -> None:
        self._placed.clear()
        self._count += 1
        log = self.log / f"install-{self._count:03d}.log" if self.log else None
        result = self._run(op.argv, cwd=op.cwd, env={**self.env, **op.env}, log=log, merge=True)
        self.results.append((label, result))
        check_limit(result, "")
        if result.returncode not in op.expect:
            raise StepFailed(
                op.failure or f"exit {result.returncode}",
                result=result,
                next_step="run the step by hand: see the last lines",
            )

    def _run(
        self,
        argv: Sequence[str],
        *,
        cwd: str = "/",
        env: Mapping[str, str] | None = None,
        log: Path | None = None,
        merge: bool = False,
    ) -> Result:
        timeout = None
        if self.deadline is not None:
            timeout = max(0.1, self.deadline - time.monotonic())
        return self.system.run(
            argv,
            cwd=cwd,
            env=self.env if env is None else env,
            log=log,
            merge=merge,
            timeout=timeout,
        )

    def _plain(self, argv: Sequence[str]) -> Result:
        result = self._run(argv)
        check_limit(result, argv[0])
        if result.returncode != 0:
            said = result.stderr.strip() or f"exit status {result.returncode}"
            msg = f"{argv[0]} failed: {said}"
            raise StepFailed(msg, result=result)
        return result

    # -- files ---------------------------------------------------------------------------------

    def _write(self, path: str, data: bytes, mode: int) -> None:
        parent, name = str(PurePosixPath(path).parent), PurePosixPath(path).name
        self._plain(["mkdir", "-p", "--", parent])
        self.system.put(_one_file(name, io.BytesIO(data), len(data), mode), parent)

    def _fetch(self, op: Fetch) -> None:
        if self.downloader is None:
            msg = f"downloads are off here: {op.urls[0]}"
            raise StepFailed(msg, blame=Blame.HOST)
        checksum = op.checksum
        if not checksum and op.checksum_url:
            listed = self.downloader.fetch([op.checksum_url], "")
            checksum = listed_checksum(listed.path, PurePosixPath(op.urls[0]).name, op.checksum_url)
        got = self.downloader.fetch(op.urls, checksum, op.algorithm, op.size)
        if op.unverified:
            self.notices.append(
                f"unverified download: {op.urls[0]} (nothing says what it should be; "
                f"SHA-256 {got.sha256})"
            )
        parent, name = str(PurePosixPath(op.dest).parent), PurePosixPath(op.dest).name
        self._plain(["mkdir", "-p", "--", parent])
        with got.path.open("rb") as source:
            self.system.put(_one_file(name, source, got.size, 0o644), parent)
        self._placed[op.dest] = got.path

    def _unpack(self, op: Unpack) -> None:
        from pytest_sandbox.archives import transcode

        self._plain(["mkdir", "-p", "--", op.dest])
        with tempfile.TemporaryDirectory(prefix="pytest-sandbox-") as folder:
            archive = self._placed.get(op.archive) or self._bring_out(op.archive, Path(folder))
            clean = Path(folder) / "clean.tar"
            name = PurePosixPath(op.archive).name
            with clean.open("wb") as out:
                transcode(archive, op.format, out, strip=op.strip, files=op.files, name=name)
            with clean.open("rb") as tar:
                self.system.put(tar, op.dest)

    def _bring_out(self, path: str, folder: Path) -> Path:
        try:
            _, chunks = self.system.get(path)
        except FileNotFoundError:
            msg = f"no archive {path} in the sandbox"
            raise StepFailed(msg, next_step="check the step that should have made it") from None
        wrapped, inner = folder / "out.tar", folder / "archive"
        with wrapped.open("wb") as out:
            for chunk in chunks:
                out.write(chunk)
        with tarfile.open(wrapped) as tar:
            member = tar.next()
            source = tar.extractfile(member) if member is not None and member.isreg() else None
            if source is None:
                msg = f"{path} is no regular file"
                raise StepFailed(msg)
            with inner.open("wb") as out:
                while block := source.read(1 << 20):
                    out.write(block)
        wrapped.unlink()
        return inner

    # -- requirements --------------------------------------------------------------------------

    def _require_command(self, op: RequireCommand, label: str) -> None:
        found = self._run(["/bin/sh", "-c", _WHERE_SCRIPT, "sh", op.command])
        if found.returncode != 0:
            self._missing(op, f"command {op.command!r} is missing")
        if not op.min_version:
            return
        asked = self._run([op.command, op.version_flag], merge=True)
        self.results.append((label, asked))
        if asked.returncode != 0:
            self._missing(
                op, f"{op.command} {op.version_flag} exited with {asked.returncode}", asked
            )
        match = re.search(op.version_regex, asked.stdout)
        if match is None or not match.groups():
            msg = f"no version in what {op.command} {op.version_flag} prints"
            raise StepFailed(
                msg, result=asked, next_step=f"mend version_regex {op.version_regex!r}"
            )
        if not at_least(match[1], op.min_version):
            self._missing(op, f"{op.command} {match[1]} is older than {op.min_version}", asked)

    @staticmethod
    def _missing(op: RequireCommand, what: str, result: Result | None = None) -> None:
        if op.guidance:
            guidance = " ".join(op.guidance.split())
            raise GuidanceNeeded(what, result=result, next_step=guidance)
        raise RequirementMissing(what, result=result, next_step="add a package that brings it")

    def _require_packages(self, op: RequirePackages) -> None:
        missing = _QUERIES[op.manager](self._run, op.packages)
        if missing:
            msg = f"{op.manager} has not installed {', '.join(missing)}"
            raise RequirementMissing(
                msg,
                next_step="put them in the image: @pytest.mark.requires_system or "
                "`pytest --sandbox-rebuild`",
            )


def listed_checksum(listing: Path, name: str, url: str) -> str:
    """The hash of `name` in a checksum file: its only word, or the first of the line that ends
    with the name. Raises StepFailed (blame upstream)."""
    lines = [line.split() for line in listing.read_text("utf-8", "replace").splitlines()]
    found = [
        words[0]
        for words in lines
        if words and (len(words) == 1 or words[-1].lstrip("*").rpartition("/")[2] == name)
    ]
    if not found:
        msg = f"{url} has no checksum of {name}"
        raise StepFailed(msg, blame=Blame.UPSTREAM, next_step="check checksum_url")
    return found[0].lower()


def check_limit(result: Result, subject: str) -> None:
    """Raise StepFailed with blame `limit` if a limit ended or harmed the command."""
    if result.limit is not None:
        msg = f"{subject} hit the {result.limit} limit".lstrip()
        raise StepFailed(
            msg,
            result=result,
            blame=blame_of_limit(result.limit),
            next_step=f"raise it with --sandbox-{_OPTIONS[result.limit]} if the need is real",
        )


_OPTIONS = {
    "memory": "memory",
    "pids": "pids",
    "disk": "disk",
    "output": "output",
    "time": "timeout",
}


def blame_of_limit(limit: str | None) -> Blame | None:
    """timeout for the wall clock, limit for the others, None for no limit."""
    if limit is None:
        return None
    return Blame.TIMEOUT if limit == "time" else Blame.LIMIT


def _one_file(name: str, source: IO[bytes], size: int, mode: int) -> IO[bytes]:
    # Spooled: a large download goes through a file, never through pytest's memory.
    tar_file = tempfile.SpooledTemporaryFile(max_size=1 << 20)  # noqa: SIM115 - the caller reads it
    with tarfile.open(fileobj=tar_file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo(name)
        member.size, member.mode, member.mtime = size, mode, int(time.time())
        tar.addfile(member, source)
    tar_file.seek(0)
    return cast("IO[bytes]", tar_file)


def _missing_apt(run: Callable[..., Result], packages: Sequence[str]) -> list[str]:
    shown = run(["dpkg-query", "-W", "-f", "${Package}|${Status}|${Provides}\\n"])
    have: set[str] = set()
    for line in shown.stdout.splitlines():
        name, _, rest = line.partition("|")
        status, _, provides = rest.partition("|")
        if status.endswith(" installed"):
            have.add(name)
            have.update(part.split("(")[0].strip() for part in provides.split(","))
    return [p for p in packages if p.split("=")[0].split(":")[0] not in have]


def _missing_rpm(run: Callable[..., Result], packages: Sequence[str]) -> list[str]:
    return [p for p in packages if run(["rpm", "-q", "--whatprovides", p]).returncode != 0]


def _missing_pacman(run: Callable[..., Result], packages: Sequence[str]) -> list[str]:
    return run(["pacman", "-T", *packages]).stdout.split()


def _missing_apk(run: Callable[..., Result], packages: Sequence[str]) -> list[str]:
    return [p for p in packages if run(["apk", "info", "-e", p]).returncode != 0]


_QUERIES: Final[Mapping[str, Callable[[Callable[..., Result], Sequence[str]], list[str]]]] = {
    "apt": _missing_apt,
    "dnf": _missing_rpm,
    "zypper": _missing_rpm,
    "pacman": _missing_pacman,
    "apk": _missing_apk,
}


def explain(error: SandboxError) -> list[str]:
    """The lines under a headline: command, status, limit and last lines of what it wrote."""
    result: Result | None = getattr(error, "result", None)
    lines: list[str] = []
    if result is not None:
        import shlex

        lines.append(f"command: {shlex.join(result.argv)}")
        status = f"status: {result.returncode}"
        lines.append(status + (f" (limit: {result.limit})" if result.limit else ""))
        tail = (result.stdout + result.stderr).splitlines()[-20:]
        if tail:
            lines.append("last lines:")
            lines.extend(f"  | {line}" for line in tail)
        if result.truncated:
            lines.append("  (the middle of the output was dropped)")
        if result.log is not None:
            lines.append(f"full log: {result.log}")
    if error.details:
        lines.extend(f"  | {line}" for line in error.details.splitlines())
    return lines

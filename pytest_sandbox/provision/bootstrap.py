"""Base systems without a registry: a minimal Debian from the host's own mirror, as a reproducible
tar."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pytest_sandbox.errors import Blame, ImageUnavailable
from pytest_sandbox.provision.mirrors import AptSource, distribution_of, mirror_sources
from pytest_sandbox.provision.proxies import masked, proxy_environment
from pytest_sandbox.targets import host_arch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Say = Callable[[str], None]

TIMEOUT: Final = 1800.0
"""Seconds that a bootstrap may take (emulated architectures are ten times slower)."""

EPOCH: Final = 1735689600
"""2025-01-01, where the environment sets no SOURCE_DATE_EPOCH: later file times become this, so
that the same package versions give the same bytes on every day."""

EXCLUDED: Final = (
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/groff/*",
    "path-exclude=/usr/share/lintian/*",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/locale/*",
    "path-include=/usr/share/locale/locale.alias",
)
"""dpkg's options, in the base too, so that packages installed later stay small as well (copyright
files are kept)."""

_QEMU: Final[Mapping[str, str]] = {"amd64": "qemu-x86_64", "arm64": "qemu-aarch64"}

_FAILURES: Final[tuple[tuple[str, Blame, str], ...]] = (
    (
        (
            r"NO_PUBKEY|KEYEXPIRED|EXPKEYSIG|is not signed|couldn't be verified|"
            r"Missing key|[Uu]nknown.*key"
        ),
        Blame.HOST,
        "update the archive's keys: apt-get install --only-upgrade {keyring}",
    ),
    (
        r"certificate|SSL|TLS|self.signed",
        Blame.HOST,
        "add your proxy's CA certificate to this machine's trust store (update-ca-certificates)",
    ),
    (r"No space left", Blame.HOST, "free some disk space, or point TMPDIR at a larger disk"),
    (
        r"40[34]  ?(Not Found|Forbidden)|does not have a Release file|no such file",
        Blame.UPSTREAM,
        "check that {mirror} has the suite {suite}, or name another with --mirror",
    ),
    (
        (
            r"resolv|[Cc]onnect|timed? ?out|429|50[0234] |Network is unreachable|Connection|"
            r"reset by peer|Hash Sum mismatch|Failed to fetch|Error reading from|unexpected size"
        ),
        Blame.NETWORK,
        "check the network and the proxy settings, then try again",
    ),
    (
        r"unshare|newuidmap|subuid|must be root|[Pp]ermission denied|Operation not permitted",
        Blame.HOST,
        (
            "run as root, or let this user make user namespaces: apt-get install uidmap, "
            "and a line for the user in /etc/subuid and /etc/subgid"
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class BootstrappedBase:
    """A root file system as an uncompressed tar: `sha256` over its bytes, `size` in bytes, `mirror`
    where it came from."""

    path: Path
    sha256: str
    size: int
    suite: str
    arch: str
    mirror: str = ""


def bootstrap_debian(
    suite: str,
    arch: str,
    mirror: str | None = None,
    *,
    destination: Path,
    say: Say,
    environ: Mapping[str, str] | None = None,
    timeout: float = TIMEOUT,
) -> BootstrappedBase:
    """Make a minimal `suite` (glibc, apt, ca-certificates) for `arch` as the tar file
    `destination`.

    By mmdebstrap, or debootstrap where only that is installed. `destination` appears only when it
    is whole. Raises ImageUnavailable: blame host for a missing tool or key, network, or upstream
    where the mirror lacks the suite.
    """
    environ = os.environ if environ is None else environ
    if not re.fullmatch(r"[a-z][a-z0-9.-]*", suite):
        msg = f"{suite!r} is no suite's name"
        raise ImageUnavailable(msg, next_step="name one like trixie or bookworm")
    tool = bootstrap_tool()
    if tool is None:
        msg = "a Debian base needs mmdebstrap or debootstrap, and neither is installed"
        raise ImageUnavailable(msg, blame=Blame.HOST, next_step="apt-get install mmdebstrap")
    problem = emulation_problem(arch)
    if problem:
        raise ImageUnavailable(problem[0], blame=Blame.HOST, next_step=problem[1])
    sources = mirror_sources(suite, mirror)
    destination.parent.mkdir(parents=True, exist_ok=True)
    # Work in a folder of our own, so that a killed tool's leftovers go with it. It lies where the
    # tool expects room (TMPDIR), and must be passable for mmdebstrap's user namespace.
    work = Path(tempfile.mkdtemp(prefix="pytest-sandbox-bootstrap-", dir=environ.get("TMPDIR")))
    try:
        work.chmod(0o711)
        tar = work / "base.tar"
        env = _environment(environ, work)
        say(
            f"bootstrapping {suite} for {arch} from {masked(sources[0].uri)} with {Path(tool).name}"
        )
        if Path(tool).name == "mmdebstrap":
            _check(
                *_run(_mmdebstrap(tool, suite, arch, sources, tar), env, say, timeout),
                sources,
                suite,
            )
        else:
            _debootstrap(tool, suite, arch, sources, tar, env=env, say=say, timeout=timeout)
        aside = destination.with_name(f".{destination.name}.{os.getpid()}")
        sha256, size = _copy_hashed(tar, aside)
        aside.replace(destination)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return BootstrappedBase(destination, sha256, size, suite, arch, masked(sources[0].uri))


BOOTSTRAPPERS: Final[Mapping[str, Callable[..., BootstrappedBase]]] = {"debian": bootstrap_debian}
"""Family -> what makes a base of it; families that are not here need a registry."""


def bootstrap_tool() -> str | None:
    """The path of the tool that would be used."""
    path = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
    return shutil.which("mmdebstrap", path=path) or shutil.which("debootstrap", path=path)


def emulation_problem(
    arch: str, binfmt: Path = Path("/proc/sys/fs/binfmt_misc")
) -> tuple[str, str] | None:
    """Why programs for `arch` cannot run on this host, and what to do about it; None where they
    can."""
    if arch == host_arch():
        return None
    handler = _QEMU.get(arch)
    if handler is None:
        return f"unknown architecture {arch!r}", "use amd64 or arm64"
    steps = []
    enabled = False
    with suppress(OSError):
        enabled = (binfmt / handler).read_text(encoding="ascii").startswith("enabled")
    path = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
    tools = {"arch-test": "arch-test"}
    if not enabled:
        tools |= {f"{handler}-static": "qemu-user-static", "update-binfmts": "binfmt-support"}
    lacking = [pack for tool, pack in tools.items() if shutil.which(tool, path=path) is None]
    if lacking:
        steps.append(f"apt-get install {' '.join(lacking)}")
    if enabled:
        if not lacking:
            return None
        why = f"this machine runs {arch} programs, but mmdebstrap cannot see that without arch-test"
        return why, "as root: " + " && ".join(steps)
    if not (binfmt / "register").exists():
        steps.append(f"mount -t binfmt_misc binfmt_misc {binfmt}")
    steps.append(f"update-binfmts --enable {handler}")
    return f"this {host_arch()} machine cannot run {arch} programs", "as root: " + " && ".join(
        steps
    )


def _environment(environ: Mapping[str, str], work: Path) -> dict[str, str]:
    kept = ("SSL_CERT_FILE", "SSL_CERT_DIR")
    env = {name: environ[name] for name in kept if name in environ}
    env |= proxy_environment(environ)
    if "http_proxy" not in env:
        # apt's own proxy setting: mmdebstrap's apt does not read this host's configuration.
        for scheme in ("http", "https"):
            value = _apt_setting(f"Acquire::{scheme}::Proxy")
            if value.startswith("http"):
                env[f"{scheme}_proxy"] = value
    path = environ.get("PATH", os.defpath)
    return env | {
        # Debian's tools want Debian's python3 and perl.
        "PATH": f"/usr/sbin:/usr/bin:/sbin:/bin:{path}:/usr/local/sbin",
        "LC_ALL": "C.UTF-8",
        # The root of mmdebstrap's user namespace is somebody else, whom HOME may be closed to.
        "HOME": str(work),
        "TMPDIR": str(work),
        "DEBIAN_FRONTEND": "noninteractive",
        "SOURCE_DATE_EPOCH": environ.get("SOURCE_DATE_EPOCH", "") or str(EPOCH),
    }


def _apt_setting(name: str) -> str:
    if shutil.which("apt-config") is None:
        return ""
    asked = subprocess.run(
        ["apt-config", "dump", "--no-empty", "--format", "%v%n", name],
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    return asked.stdout.splitlines()[0].strip() if asked.returncode == 0 and asked.stdout else ""


def _apt_options() -> list[str]:
    options = ['Acquire::Languages "none"', 'Acquire::Retries "3"']
    if _apt_setting("Acquire::Check-Valid-Until").lower() in {"false", "no", "0"}:
        # The host's mirror is known to serve old indexes (a frozen or air-gapped one).
        options.append('Acquire::Check-Valid-Until "false"')
    return options


def _mmdebstrap(
    tool: str, suite: str, arch: str, sources: Sequence[AptSource], tar: Path
) -> list[str]:
    return [
        tool,
        "--variant=apt",
        "--include=ca-certificates",
        f"--architectures={arch}",
        *(f"--dpkgopt={option}" for option in EXCLUDED),
        *(f"--aptopt={option}" for option in _apt_options()),
        "--format=tar",
        suite,
        str(tar),
        "\n".join(source.line for source in sources),
    ]


_CLEAN: Final = """set -eu
cd "$1"
rm -rf debootstrap var/lib/apt/lists/* var/cache/apt/* var/log/* var/cache/ldconfig/aux-cache
rm -rf tmp/* run/*
rm -f etc/resolv.conf etc/hostname var/lib/dbus/machine-id etc/*-
rm -f var/lib/dpkg/*-old var/cache/debconf/*-old
: > etc/machine-id
find usr/share/doc ! -type d ! -name copyright -delete
rm -rf usr/share/man/* usr/share/info/* usr/share/groff/* usr/share/lintian/*
find usr/share/locale -mindepth 1 -maxdepth 1 ! -name locale.alias -exec rm -rf {} +
exec tar --sort=name --mtime="@$SOURCE_DATE_EPOCH" --clamp-mtime --numeric-owner \\
  --one-file-system --xattrs --xattrs-include=security.capability --format=pax \\
  --pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime -cf "$2" .
"""


def _debootstrap(
    tool: str,
    suite: str,
    arch: str,
    sources: Sequence[AptSource],
    tar: Path,
    *,
    env: Mapping[str, str],
    say: Say,
    timeout: float,
) -> None:
    if os.geteuid() != 0:
        msg = "debootstrap needs root"
        raise ImageUnavailable(
            msg, blame=Blame.HOST, next_step="apt-get install mmdebstrap uidmap (it works without)"
        )
    root = tar.with_name("root")
    argv = [tool, "--variant=minbase", "--include=ca-certificates", f"--arch={arch}"]
    keyring = Path(f"/usr/share/keyrings/{distribution_of(suite) or 'debian'}-archive-keyring.gpg")
    if keyring.is_file():
        argv.append(f"--keyring={keyring}")
    _check(*_run([*argv, suite, str(root), sources[0].uri], env, say, timeout), sources, suite)
    lines = "".join(f"{source.line}\n" for source in sources)
    (root / "etc/apt/sources.list").write_text(lines, encoding="utf-8")
    options = root / "etc/apt/apt.conf.d/99pytest-sandbox"
    options.write_text("".join(f"{option};\n" for option in _apt_options()), encoding="utf-8")
    excluded = root / "etc/dpkg/dpkg.cfg.d/99pytest-sandbox"
    excluded.write_text("".join(f"{option}\n" for option in EXCLUDED), encoding="utf-8")
    _check(
        *_run(["sh", "-c", _CLEAN, "sh", str(root), str(tar)], env, say, timeout), sources, suite
    )


def _run(
    argv: Sequence[str], env: Mapping[str, str], say: Say, timeout: float
) -> tuple[int, list[str]]:
    """Run to the end; its `I:` lines are progress. Exit status (124 out of time) and the last
    lines."""
    with subprocess.Popen(
        list(argv),
        env=dict(env),
        cwd=env["TMPDIR"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        expired = threading.Event()

        def stop() -> None:
            expired.set()
            _end(process)

        watch = threading.Timer(timeout, stop)
        watch.daemon = True
        watch.start()
        lines: list[str] = []
        try:
            assert process.stdout is not None
            for raw in process.stdout:
                line = raw.rstrip()
                if line.startswith("I: ") and not _QUIET.search(line):
                    say(line[3:].rstrip(". "))
                if line and not line.startswith("I: "):
                    lines = [*lines[-39:], line]
            process.wait()
        except BaseException:
            _end(process)
            raise
        finally:
            watch.cancel()
        return (124 if expired.is_set() else process.returncode), lines


_QUIET = re.compile(
    r"tempdir|automatically chosen|signed-by value|received signal|chroot architecture .* equal|"
    r"^I: (done|success|Retrieving|Validating|Extracting |Unpacking |Configuring )"
)


def _end(process: subprocess.Popen[str]) -> None:
    """TERM first: the tool unmounts what it mounted. Then its whole session, which may hold our
    pipe open."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _check(returncode: int, lines: Sequence[str], sources: Sequence[AptSource], suite: str) -> None:
    if returncode == 0:
        return
    details = masked("\n".join(lines))
    mirror = masked(sources[0].uri)
    what = f"bootstrapping {suite} from {mirror} failed with exit status {returncode}"
    if returncode == 124:
        raise ImageUnavailable(
            f"bootstrapping {suite} from {mirror} took too long",  # noqa: EM102
            blame=Blame.TIMEOUT,
            next_step="try a nearer mirror with --mirror",
            details=details,
        )
    errors = "\n".join(line for line in lines if re.match(r"[EW]: |Err:|gpgv?:|Error", line))
    errors = errors or details
    keyring = f"{distribution_of(suite) or 'debian'}-archive-keyring"
    for pattern, blame, step in _FAILURES:
        found = re.search(rf"^.*(?:{pattern}).*$", errors, re.MULTILINE)
        if found:
            line = masked(found[0])[:200]
            raise ImageUnavailable(
                f"{what}: {line}",  # noqa: EM102
                blame=blame,
                next_step=step.format(keyring=keyring, mirror=mirror, suite=suite),
                details=details,
            )
    raise ImageUnavailable(
        what, blame=Blame.HOST, next_step="read the lines below", details=details
    )


def _copy_hashed(source: Path, destination: Path) -> tuple[str, int]:
    digest = hashlib.sha256()
    size = 0
    with source.open("rb") as reader, destination.open("wb") as writer:
        while chunk := reader.read(1 << 20):
            digest.update(chunk)
            size += len(chunk)
            writer.write(chunk)
    return digest.hexdigest(), size

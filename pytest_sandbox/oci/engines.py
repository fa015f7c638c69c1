"""runc, crun and the init of sandboxes: found, and read."""

from __future__ import annotations

import contextlib
import gzip
import os
import re
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pytest_sandbox.oci.findings import Finding, Lacking, install
from pytest_sandbox.oci.versions import OLDEST, Version, hangs, open_holes, parse_version

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

NAMES: Final = ("runc", "crun")
"""The engines that are looked for, the preferred one first."""
SYSTEM_FOLDERS: Final = ("/usr/local/sbin", "/usr/sbin", "/sbin")
"""Looked through after PATH: an ordinary user's PATH lacks them."""
_INITS: Final = ("tini-static", "docker-init", "tini")
_INIT_FOLDERS: Final = ("/usr/libexec/docker", "/usr/lib/docker")
_WAIT: Final = 20.0
_PT_INTERP: Final = 3
_CVE = re.compile(r"CVE-\d{4}-\d{4,}")


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine that answers. `text` is its version with the distribution's suffix; `backported`
    are the CVEs that the distribution's change log names.
    """

    name: str
    path: Path
    version: Version
    text: str
    backported: frozenset[str] = frozenset()

    def findings(self) -> list[Finding]:
        """What is known of this version: hangs and missing security fixes. Empty if nothing."""
        found = []
        newer = f"install a newer one, or another engine: {install('crun')}"
        if self.version < OLDEST[self.name]:
            what = f"{self.path} is {self.text}; {OLDEST[self.name]} is the oldest that works"
            found.append(Finding(f"old-{self.name}", False, what, newer, fatal=True))
        if hangs(self.name, self.version):
            what = (
                f"{self.path} is {self.text}: it can hang for ever when a process ends at once "
                "(fixed in 1.3.6, 1.4.2 and 1.5.0)"
            )
            found.append(Finding(f"hanging-{self.name}", False, what, newer, fatal=True))
        if holes := open_holes(self.name, self.version, self.backported):
            what = f"{self.path} is {self.text}, without the fixes of {', '.join(holes)}"
            step = "install a newer one (a distribution's may have them without saying so)"
            found.append(Finding(f"insecure-{self.name}", False, what, step))
        return found


@dataclass(frozen=True, slots=True)
class Init:
    """A static tini: process 1 of sandboxes."""

    path: Path
    text: str


def find_program(name: str, environ: Mapping[str, str] | None = None) -> Path | None:
    """A program in PATH, then in the folders that an ordinary user's PATH lacks."""
    environ = os.environ if environ is None else environ
    # An empty or relative part of PATH would find what the current folder has.
    parts = [*environ.get("PATH", os.defpath).split(os.pathsep), *SYSTEM_FOLDERS]
    found = shutil.which(name, path=os.pathsep.join(p for p in parts if p.startswith("/")))
    return Path(found) if found else None


def find_engine(given: str = "", environ: Mapping[str, str] | None = None) -> Engine:
    """The engine: `given` (a name or a path), else runc, else crun. Raises Lacking.

    One that is too old or can hang is passed over for the other unless it was given; the last
    resort is the best of those that are there, with its findings.
    """
    if given:
        path = Path(given).absolute() if "/" in given else find_program(given, environ)
        if path is None or not os.access(path, os.X_OK) or path.is_dir():
            msg = f"{given!r} is no program that can be run"
            step = "give runc, crun or the path of one of them"
            raise Lacking(msg, problem="no-runc", next_step=step)
        return read_engine(path)
    wrong: Lacking | None = None
    found: list[Engine] = []
    for name in NAMES:
        path = find_program(name, environ)
        if path is None:
            continue
        try:
            engine = read_engine(path)
        except Lacking as error:
            wrong = wrong or error
            continue
        if not any(finding.fatal for finding in engine.findings()):
            return engine
        found.append(engine)
    if found:
        return found[0]
    if wrong:
        raise wrong
    msg = "neither runc nor crun is in PATH, /usr/local/sbin, /usr/sbin or /sbin"
    raise Lacking(msg, problem="no-runc", next_step=install("runc"))


def read_engine(path: Path) -> Engine:
    """Ask a program for its version. Raises Lacking where it is no runc or crun that answers."""
    text = _say(path, "--version")
    match = re.match(r"(runc|crun) version (\S+)", text)
    version = parse_version(match[2]) if match else None
    if match is None or version is None:
        msg = f"{path} tells no version of runc or crun"
        raise Lacking(msg, problem="engine-unknown", next_step=install("runc"))
    suffixed, backported = _packaged(path, match[1], match[2], text)
    return Engine(match[1], path, version, suffixed, backported)


def _packaged(path: Path, name: str, version: str, text: str) -> tuple[str, frozenset[str]]:
    """The version with its distribution's suffix, and the CVEs that its change log names.

    Debian's runc tells its package's version as its commit; else dpkg is asked for the file.
    """
    commit = re.search(rf"^commit: ({re.escape(version)}-\S+)", text, re.MULTILINE)
    if not str(path.resolve()).startswith(("/usr/bin", "/usr/sbin", "/bin", "/sbin")):
        return version, frozenset()
    packages = Path("/var/lib/dpkg/info")
    owner = next((one for one in _owners(packages, name, path)), "")
    if not owner:
        return commit[1] if commit else version, frozenset()
    known = commit[1] if commit else ""
    if not known and (dpkg := shutil.which("dpkg-query")):
        known = _say(Path(dpkg), "-W", "-f", "${Version}", owner).strip()
    fixed: set[str] = set()
    log = f"/usr/share/doc/{owner}/changelog.Debian.gz"
    # Without the documentation nothing is known of backports.
    with (
        contextlib.suppress(OSError, EOFError),
        gzip.open(log, "rt", encoding="utf-8", errors="replace") as lines,
    ):
        fixed.update(_CVE.findall(lines.read()))
    if not known.startswith(version):
        return version, frozenset()  # another program has taken the place of the package's
    return known, frozenset(fixed)


def _owners(packages: Path, name: str, path: Path) -> Iterator[str]:
    """The dpkg packages that have the file; /bin and /usr/bin may be one folder."""
    names = {str(path), str(path.resolve()), str(path.resolve()).removeprefix("/usr")}
    for listing in sorted(packages.glob(f"{name}*.list")):
        try:
            lines = set(listing.read_text(encoding="utf-8", errors="replace").splitlines())
        except OSError:
            continue
        if names & lines:
            yield listing.stem.partition(":")[0]


def find_init(given: str = "", environ: Mapping[str, str] | None = None) -> Init:
    """A static tini: `given`, else tini-static, docker-init or tini. Raises Lacking.

    It must be static, since it runs in any image, and know `-p`, so that sandboxes die with us.
    """
    refused: list[str] = []
    for path in [Path(given)] if given else _inits(environ):
        if not os.access(path, os.X_OK):
            refused.append(f"{path} cannot be run")
        elif not is_static(path):
            refused.append(f"{path} needs shared libraries")
        elif "-p SIGNAL" not in _say(path, "-h"):
            refused.append(f"{path} has no option -p")
        else:
            return Init(path, _say(path, "--version").strip())
    why = f" ({'; '.join(dict.fromkeys(refused))})" if refused else ""
    msg = f"no static tini is here{why}: sandboxes need an init"
    raise Lacking(msg, problem="no-init", next_step=install("tini"))


def _inits(environ: Mapping[str, str] | None) -> Iterator[Path]:
    for name in _INITS:
        if found := find_program(name, environ):
            yield found
        for folder in _INIT_FOLDERS:
            if (path := Path(folder, name)).exists():
                yield path


def is_static(path: Path) -> bool:
    """Is it an ELF program that names no dynamic loader (elf(5))?"""
    try:
        with path.open("rb") as file:
            data = file.read(64)
            if data[:4] != b"\x7fELF":
                return False
            order, wide = "<" if data[5] == 1 else ">", data[4] == 2
            (offset,) = struct.unpack_from(
                f"{order}{'Q' if wide else 'I'}", data, 32 if wide else 28
            )
            size, count = struct.unpack_from(f"{order}HH", data, 54 if wide else 42)
            file.seek(offset)
            table = file.read(size * count)
        kinds = [struct.unpack_from(f"{order}I", table, i * size)[0] for i in range(count)]
    except (OSError, IndexError, struct.error):
        return False
    return _PT_INTERP not in kinds


def _say(path: Path, *arguments: str) -> str:
    """What a program prints; empty where it fails to start or does not end."""
    try:
        done = subprocess.run(
            [path, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
            timeout=_WAIT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode("utf-8", "replace")

"""What the figures were measured on, in words that name no place and no person."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path

PROGRAMS = {
    "Docker Engine": ("docker", "version", "--format", "{{.Server.Version}}"),
    "runc": ("runc", "--version"),
    "podman": ("podman", "--version"),
    "buildah": ("buildah", "--version"),
    "bubblewrap": ("bwrap", "--version"),
    "util-linux": ("unshare", "--version"),
    "skopeo": ("skopeo", "--version"),
    "umoci": ("umoci", "--version"),
}
PACKAGES = ("pytest", "docker", "testcontainers", "pytest_container")


@cache
def describe() -> str:
    """Processor, memory, kernel, and the versions of what takes part: one sentence each."""
    from pytest_sandbox.oci.cgroups import find_cgroups

    flags = _first(Path("/proc/cpuinfo"), r"^flags\s*:(.*)$").split()
    kind = "virtual " if "hypervisor" in flags else ""
    model = _first(Path("/proc/cpuinfo"), r"^model name\s*:\s*(.*)$") or platform.machine()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    system = _first(Path("/etc/os-release"), r'^PRETTY_NAME="?([^"\n]*)') or "Linux"
    kernel = os.uname().release.partition("-")[0]
    programs = [f"{name} {text}" for name, argv in PROGRAMS.items() if (text := _version(argv))]
    packages = [f"{name} {text}" for name in PACKAGES if (text := _installed(name))]
    return "\n".join(
        [
            f"- {_cpus()} {kind}CPUs ({model}), {memory:.0f} GiB of memory",
            f"- Linux {kernel}, cgroups {find_cgroups().layout}, {system}",
            f"- Python {platform.python_version()}, {', '.join(packages)}",
            f"- {', '.join(programs)}",
        ]
    )


@cache
def short() -> str:
    """The machine in half a line."""
    kernel = ".".join(os.uname().release.split(".")[:2])
    version = ".".join(map(str, sys.version_info[:2]))
    return f"{_cpus()} CPUs, Linux {kernel}, Python {version}"


def _cpus() -> int:
    return len(os.sched_getaffinity(0))


def _first(path: Path, pattern: str) -> str:
    try:
        found = re.search(pattern, path.read_text(errors="replace"), re.MULTILINE)
    except OSError:
        return ""
    return found[1].strip() if found else ""


def _version(argv: tuple[str, ...]) -> str:
    if shutil.which(argv[0]) is None:
        return ""
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    found = re.search(r"\d+(?:\.\d+)+", done.stdout)
    return found[0] if found and done.returncode == 0 else ""


def _installed(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""

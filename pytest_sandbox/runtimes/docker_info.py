"""What a Docker-compatible engine says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pytest_sandbox.runtimes.base import RuntimeInfo
from pytest_sandbox.targets import arch_from_machine

_BINFMT = Path("/proc/sys/fs/binfmt_misc")
_EMULATORS = {"amd64": "qemu-x86_64", "arm64": "qemu-aarch64"}


def engine_info(client: Any, endpoint: str) -> RuntimeInfo:
    """Ask the engine, in two requests."""
    found, version = client.info(), client.version()
    components = [part.get("Name", "") for part in version.get("Components") or ()]
    podman = any("podman" in name.lower() for name in components)
    driver = str(found.get("Driver", ""))
    status = {str(key): str(value) for key, value in found.get("DriverStatus") or ()}
    backing = status.get("Backing Filesystem", "")
    arch = arch_from_machine(str(found.get("Architecture", "")))
    rootless = any("rootless" in str(option) for option in found.get("SecurityOptions") or ())
    limited = driver in {"btrfs", "zfs"} or (driver.startswith("overlay") and backing == "xfs")
    notes = []
    if not limited:
        notes.append(f"the storage driver {driver or 'in use'} cannot limit the disk of a sandbox")
    notes += [str(line) for line in found.get("Warnings") or () if "No " in str(line)]
    return RuntimeInfo(
        name="podman" if podman else "docker",
        version=str(version.get("Version", "")),
        endpoint=endpoint,
        rootless=rootless,
        cgroups=f"v{found.get('CgroupVersion') or 1}",
        arches=(arch, *_emulated(arch)),
        cpus=int(found.get("NCPU") or 1),
        memory=int(found.get("MemTotal") or 0),
        storage=f"{driver} on {backing}" if backing else driver,
        disk_limit=limited,
        notes=tuple(notes),
    )


def _emulated(own: str) -> tuple[str, ...]:
    """Architectures that this kernel runs through an emulator with its interpreter kept open (flag
    F).
    """
    found = []
    for arch, name in _EMULATORS.items():
        try:
            text = (_BINFMT / name).read_text(encoding="ascii")
        except OSError:
            continue
        flags = next((ln for ln in text.splitlines() if ln.startswith("flags:")), "")
        if arch != own and text.startswith("enabled") and "F" in flags.partition(":")[2]:
            found.append(arch)
    return tuple(found)

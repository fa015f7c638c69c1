"""Bundles: a folder with a root file system and a config.json, which any OCI runtime runs.

    bundle/
      config.json   the runtime spec; written last and by rename: a folder without it is no bundle
      rootfs/       the root file system, owned by the ids that the spec maps
      etc/          what is bound over the image's: hosts, hostname, resolv.conf, passwd, group

The runtime enters the root with the sandbox's ids: every folder above the bundle has to let others
through (o+x). A home of 0700 does not.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

from pytest_sandbox.errors import SandboxError, UsageError
from pytest_sandbox.oci import etc_files
from pytest_sandbox.oci.spec.generate import NO_LIMITS, NO_OVERRIDES, NetworkMode, generate
from pytest_sandbox.oci.spec.root import Prepared, root_request
from pytest_sandbox.oci.store.files import write_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from pytest_sandbox.oci.config import ImageConfig
    from pytest_sandbox.oci.ids import Range
    from pytest_sandbox.oci.spec.generate import Overrides
    from pytest_sandbox.oci.spec.mounts import Bind
    from pytest_sandbox.oci.spec.resources import ResourceLimits
    from pytest_sandbox.oci.store import Caller

CONFIG: Final = "config.json"
ROOTFS: Final = "rootfs"
ETC: Final = "etc"


@dataclass(frozen=True, slots=True)
class ContainerBundle:
    """A bundle on disk. `path` is its folder."""

    path: Path

    @classmethod
    def create(cls, path: Path, rootfs: Path, spec: Mapping[str, Any]) -> ContainerBundle:
        """Write `spec` as the config.json of the folder `path` (made if missing, 0711), with
        `rootfs` as its root: below `path` it is named relative to it, else absolutely.

        The file appears whole or not at all. Raises UsageError where there is a bundle already or
        `rootfs` is no folder, OSError.
        """
        path, rootfs = path.absolute(), rootfs.absolute()
        if (path / CONFIG).exists():
            msg = f"{path} is a bundle already"
            raise UsageError(msg, next_step="remove it, or name another folder")
        if not rootfs.is_dir():
            msg = f"the root file system {rootfs} is no folder"
            raise UsageError(msg, next_step="make it first")
        path.mkdir(mode=0o711, parents=True, exist_ok=True)
        place = rootfs.relative_to(path) if rootfs.is_relative_to(path) else rootfs
        root = {**spec.get("root", {}), "path": str(place)}
        write_json(path / CONFIG, {**spec, "root": root})
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> ContainerBundle:
        """The bundle that is in a folder. Raises UsageError where there is none."""
        if not (path / CONFIG).is_file():
            msg = f"{path} is no bundle: it has no {CONFIG}"
            raise UsageError(msg, next_step="name the folder of a bundle")
        return cls(path.absolute())

    @property
    def spec(self) -> dict[str, Any]:
        """The runtime spec, as it is on disk now."""
        found: dict[str, Any] = json.loads((self.path / CONFIG).read_bytes())
        return found

    @property
    def rootfs(self) -> Path:
        """The folder of the root file system."""
        return self.path / str(self.spec["root"]["path"])

    def remove(self, caller: Caller) -> None:
        """Remove the whole folder, also the files of the sandbox's ids."""
        _remove(self.path, caller)


class BundleSource(Protocol):
    """Whatever a bundle can be made from."""

    def prepare(self, destination: Path) -> ContainerBundle:
        """Make a bundle in the folder `destination`, which is missing or empty. What was made is
        removed again where it fails. Raises SandboxError, OSError.
        """


@dataclass(frozen=True, slots=True)
class BundleOptions:
    """How the sandbox of a bundle is to be; the fields are those of `generate`.

    `user` overrides the image's. `uid_map` and `gid_map` are the supervisor's ids where empty.
    `nameservers` and `extra_hosts` ((name, address)) go to resolv.conf and hosts.
    """

    overrides: Overrides = NO_OVERRIDES
    user: str = ""
    network: NetworkMode = "none"
    limits: ResourceLimits = NO_LIMITS
    mounts: Sequence[Bind] = ()
    tmpfs: Mapping[str, int] = field(default_factory=dict)
    read_only: bool = False
    init: Sequence[str] = ()
    init_files: Sequence[Bind] = ()
    cgroups_path: str = ""
    architecture: str = ""
    kernel: str = ""
    uid_map: Sequence[Range] = ()
    gid_map: Sequence[Range] = ()
    nameservers: Sequence[str] = ()
    extra_hosts: Sequence[tuple[str, str]] = ()


NO_OPTIONS: Final = BundleOptions()


def make_bundle(
    destination: Path,
    caller: Caller,
    fill: Callable[[int], ImageConfig],
    options: BundleOptions = NO_OPTIONS,
) -> ContainerBundle:
    """Make a bundle whose root `fill` puts into the empty folder of a descriptor (through jobs of
    `caller`), giving the image config. See BundleSource.prepare.
    """
    destination = destination.absolute()
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        msg = f"{destination} is there and not an empty folder"
        raise UsageError(msg, next_step="remove it, or name another one")
    destination.mkdir(mode=0o711, parents=True, exist_ok=True)
    destination.chmod(0o711)
    try:
        return _make(destination, caller, fill, options)
    except BaseException as wrong:
        try:
            _remove(destination, caller)
        except (SandboxError, OSError) as second:
            wrong.add_note(f"what was made of {destination} is still there: {second}")
        raise


def _make(
    destination: Path,
    caller: Caller,
    fill: Callable[[int], ImageConfig],
    options: BundleOptions,
) -> ContainerBundle:
    rootfs = destination / ROOTFS
    rootfs.mkdir(mode=0o755)
    rootfs.chmod(0o755)
    owner = caller.ids.root
    if os.geteuid() == 0:
        os.chown(rootfs, *owner)
    tree = os.open(rootfs, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        config = fill(tree)
        etc = destination / ETC
        etc.mkdir(mode=0o755)
        etc.chmod(0o755)
        ours = [*etc_files.engine_binds(ETC), *options.init_files]
        request = root_request(
            config,
            user=options.user,
            cwd=options.overrides.cwd,
            mounts=[*ours, *options.mounts],
            tmpfs=options.tmpfs,
        )
        told = caller.call("pytest_sandbox.oci.spec.root:prepare", request, [tree])
    finally:
        os.close(tree)
    prepared = Prepared.from_json(told)
    ours += etc_files.account_binds(ETC, prepared.missing)
    _write_etc(etc, prepared, options, owner)
    spec = generate(
        config,
        prepared,
        root=ROOTFS,
        uid_map=options.uid_map or caller.ids.uids,
        gid_map=options.gid_map or caller.ids.gids,
        overrides=options.overrides,
        network=options.network,
        limits=options.limits,
        mounts=options.mounts,
        engine_files=ours,
        tmpfs=options.tmpfs,
        read_only=options.read_only,
        init=options.init,
        rootless=caller.ids.rootless,
        cgroups_path=options.cgroups_path,
        architecture=options.architecture,
        kernel=options.kernel,
    )
    return ContainerBundle.create(destination, rootfs, spec)


def _write_etc(
    etc: Path, prepared: Prepared, options: BundleOptions, owner: tuple[int, int]
) -> None:
    hostname = options.overrides.hostname
    host = etc_files.host_resolv_conf()
    texts = {
        "/etc/hosts": etc_files.hosts_text(hostname, extra=options.extra_hosts),
        "/etc/hostname": etc_files.hostname_text(hostname),
        "/etc/resolv.conf": etc_files.resolv_text(options.network, host, options.nameservers),
    }
    texts |= {path: etc_files.account_text(path, prepared.user) for path in prepared.missing}
    etc_files.write_files(etc, texts, owner if os.geteuid() == 0 else None)


def _remove(folder: Path, caller: Caller) -> None:
    if (folder / ROOTFS).exists():
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            names = {"names": [ROOTFS]}
            caller.call("pytest_sandbox.oci.bundle_jobs:remove", names, [descriptor], where="host")
        finally:
            os.close(descriptor)
    shutil.rmtree(folder)

"""What bundles are made from: images, layouts, archives, folders, bootstrapped bases, and an
application layer over any of them.

Each source puts a whole root file system into the bundle, owned by the sandbox's ids: the bundle
needs neither the store nor a mount afterwards.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from pytest_sandbox.errors import InvalidImage
from pytest_sandbox.oci.bundle import NO_OPTIONS, BundleOptions, ContainerBundle, make_bundle
from pytest_sandbox.oci.config import ImageConfig, parse_image_config
from pytest_sandbox.oci.folder_archive import feed_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from pytest_sandbox.oci.images import Image
    from pytest_sandbox.oci.store import Caller, Store

_JOBS = "pytest_sandbox.oci.bundle_jobs"


class TreeSource(Protocol):
    """A source whose root file system another one may build on."""

    @property
    def caller(self) -> Caller:
        """The supervisor whose jobs do the work."""

    def fill(self, tree: int) -> ImageConfig:
        """Put the root file system into the empty folder behind `tree`."""


@dataclass(frozen=True)
class ImageSource:
    """An image of a store. `image` is one that is there, or a function that pulls it then."""

    image: Image | Callable[[], Image]
    store: Store
    options: BundleOptions = NO_OPTIONS

    @property
    def caller(self) -> Caller:
        """See TreeSource."""
        return self.store.caller

    def fill(self, tree: int) -> ImageConfig:
        """See TreeSource. Raises ImageUnavailable where a layer is gone."""
        image = self.image() if callable(self.image) else self.image
        _fill_from_store(self.store, image, tree)
        return parse_image_config(image.config)

    def prepare(self, destination: Path) -> ContainerBundle:
        """See BundleSource."""
        return make_bundle(destination, self.caller, self.fill, self.options)


def _fill_from_store(store: Store, image: Image, tree: int) -> None:
    identity = f"bundle-{os.getpid()}-{id(image):x}"
    store.use_layers(identity, image.keys)
    try:
        flavours = {store.layer(key).flavour for key in image.keys}
        if len(flavours) > 1:
            msg = f"{image.reference.familiar} has layers of different kinds: {sorted(flavours)}"
            raise InvalidImage(msg, next_step="remove the image and pull it again")
        if not flavours:
            return
        folder = os.open(store.root / "layers", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            args = {"lowers": [f"{key}/diff" for key in image.keys], "flavour": flavours.pop()}
            store.caller.call(f"{_JOBS}:copy_layers", args, [folder, tree], where="host")
        finally:
            os.close(folder)
    finally:
        store.release(identity)


@dataclass(frozen=True)
class DirectorySource:
    """A folder of the host, copied. Its ids are the image's own where the caller is root; an
    ordinary user's own id becomes the sandbox's root.

    `config` says what runs in it (a folder has no config of its own).
    """

    folder: Path
    caller: Caller
    config: ImageConfig = field(default_factory=ImageConfig)
    options: BundleOptions = NO_OPTIONS

    def fill(self, tree: int) -> ImageConfig:
        """See TreeSource. Raises UsageError where the folder is none."""
        with feed_folder(self.folder, self.caller.ids) as stream:
            _unpack(self.caller, stream, tree, f"the folder {self.folder}")
        return self.config

    def prepare(self, destination: Path) -> ContainerBundle:
        """See BundleSource."""
        return make_bundle(destination, self.caller, self.fill, self.options)


@dataclass(frozen=True)
class BootstrappedSource:
    """The tar of a bootstrapped base (plain, gzip or zstd). `sha256` is that of the plain tar, in
    hex; "" is not checked. `config` says what runs in it.
    """

    tar: Path
    caller: Caller
    sha256: str = ""
    config: ImageConfig = field(default_factory=ImageConfig)
    options: BundleOptions = NO_OPTIONS

    def fill(self, tree: int) -> ImageConfig:
        """See TreeSource. Raises InvalidImage for a tar that is not what it was, OSError."""
        stream = os.open(self.tar, os.O_RDONLY | os.O_CLOEXEC)
        try:
            digest = f"sha256:{self.sha256}" if self.sha256 else ""
            _unpack(self.caller, stream, tree, f"the base {self.tar.name}", digest)
        finally:
            os.close(stream)
        return self.config

    def prepare(self, destination: Path) -> ContainerBundle:
        """See BundleSource."""
        return make_bundle(destination, self.caller, self.fill, self.options)


def _unpack(caller: Caller, stream: int, tree: int, name: str, digest: str = "") -> None:
    args = {"name": name, "digest": digest, "bounds": None}
    caller.call(f"{_JOBS}:unpack_tree", args, [stream, tree])


@dataclass(frozen=True)
class LayeredSource:
    """An application layer over a run image (the shape of buildpacks).

    `layer` is an archive in the form of image layers (whiteouts hide what `base` has), held to
    `diff_id` where that is given; or a folder, which becomes `prefix` in the root. `env`,
    `entrypoint`, `cmd`, `working_dir`, `user` and `labels` change the base's config: names of `env`
    and `labels` over its own, the others in the place of its own where they are given; an
    `entrypoint` without a `cmd` drops the base's.
    """

    base: TreeSource
    layer: Path
    prefix: str = "/app"
    diff_id: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    entrypoint: Sequence[str] | None = None
    cmd: Sequence[str] | None = None
    working_dir: str = ""
    user: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    options: BundleOptions = NO_OPTIONS

    @property
    def caller(self) -> Caller:
        """See TreeSource: the base's."""
        return self.base.caller

    def fill(self, tree: int) -> ImageConfig:
        """See TreeSource. Raises InvalidImage for a bad archive, OSError."""
        config = self.base.fill(tree)
        name = f"the layer {self.layer.name}"
        if self.layer.is_dir():
            with feed_folder(self.layer, self.caller.ids, prefix=self.prefix) as stream:
                _unpack(self.caller, stream, tree, name)
        else:
            args = {"layer": name, "diff_id": self.diff_id or None}
            archive = os.open(self.layer, os.O_RDONLY | os.O_CLOEXEC)
            try:
                self.caller.call("pytest_sandbox.oci.layers.jobs:apply", args, [archive, tree])
            finally:
                os.close(archive)
        return self._changed(config)

    def _changed(self, config: ImageConfig) -> ImageConfig:
        env = dict(entry.partition("=")[::2] for entry in config.env) | dict(self.env)
        changes: dict[str, Any] = {
            "env": tuple(f"{name}={value}" for name, value in env.items()),
            "labels": {**config.labels, **self.labels},
        }
        if self.entrypoint is not None:
            changes |= {"entrypoint": tuple(self.entrypoint), "cmd": ()}
        if self.cmd is not None:
            changes["cmd"] = tuple(self.cmd)
        if self.working_dir:
            changes["working_dir"] = self.working_dir
        if self.user:
            changes["user"] = self.user
        return replace(config, **changes)

    def prepare(self, destination: Path) -> ContainerBundle:
        """See BundleSource."""
        return make_bundle(destination, self.caller, self.fill, self.options)

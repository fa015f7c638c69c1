"""What bundles are made from: images, layouts, archives, folders, bootstrapped bases, and an
application layer over any of them.

Each source puts a whole root file system into the bundle, owned by the sandbox's ids: the bundle
needs neither the store nor a mount afterwards.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from pytest_sandbox.errors import InvalidImage, UsageError
from pytest_sandbox.oci.bounds import DEFAULT_BOUNDS, Bounds
from pytest_sandbox.oci.bundle import NO_OPTIONS, BundleOptions, ContainerBundle, make_bundle
from pytest_sandbox.oci.config import ImageConfig, parse_image_config
from pytest_sandbox.oci.digests import digest_of
from pytest_sandbox.oci.folder_archive import feed_folder
from pytest_sandbox.oci.reference import parse_reference

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from pytest_sandbox.oci.images import Image
    from pytest_sandbox.oci.platforms import Platform
    from pytest_sandbox.oci.reference import Reference
    from pytest_sandbox.oci.store import Caller, Store

_Entry = TypeVar("_Entry")
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
class LayoutSource:
    """An OCI layout: a folder, or a tar of one. It goes into the store on the way.

    `name` chooses among several images: what the layout calls it, or the tag alone; "" takes the
    only one. `platform` is this machine's where None.
    """

    path: Path
    store: Store
    name: str = ""
    platform: Platform | None = None
    options: BundleOptions = NO_OPTIONS
    bounds: Bounds = DEFAULT_BOUNDS

    @property
    def caller(self) -> Caller:
        """See TreeSource."""
        return self.store.caller

    def image(self) -> Image:
        """The image, in the store. Raises InvalidImage, ImageUnavailable, UsageError."""
        from pytest_sandbox.oci import layout
        from pytest_sandbox.oci.layout_files import open_files

        with self.store.work() as work:
            files = open_files(self.path, work.folder, self.bounds)
            found = layout.entries(files, self.bounds)
            entry = _chosen(self.path, self.name, {e.name or e.descriptor.digest: e for e in found})
            reference = entry.reference() or _made_up(entry.descriptor.digest)
            return layout.load_entry(
                self.store, files, entry, reference, platform=self.platform, bounds=self.bounds
            )

    def fill(self, tree: int) -> ImageConfig:
        """See TreeSource."""
        return ImageSource(self.image, self.store).fill(tree)

    def prepare(self, destination: Path) -> ContainerBundle:
        """See BundleSource."""
        return make_bundle(destination, self.caller, self.fill, self.options)


@dataclass(frozen=True)
class DockerArchiveSource:
    """An archive of `docker save`. It goes into the store on the way. `name` as in LayoutSource."""

    path: Path
    store: Store
    name: str = ""
    options: BundleOptions = NO_OPTIONS
    bounds: Bounds = DEFAULT_BOUNDS

    @property
    def caller(self) -> Caller:
        """See TreeSource."""
        return self.store.caller

    def image(self) -> Image:
        """The image, in the store. Raises InvalidImage, UsageError."""
        from pytest_sandbox.oci import docker_archive
        from pytest_sandbox.oci.layout_files import open_files, read_file

        with self.store.work() as work:
            files = open_files(self.path, work.folder, self.bounds)
            named = {
                str(name): entry
                for entry in docker_archive.entries(files, self.bounds)
                for name in entry.references or (entry.config,)
            }
            entry = _chosen(self.path, self.name, named)
            digest = digest_of(read_file(files, entry.config, self.bounds.config))
            reference = entry.references[0] if entry.references else _made_up(digest)
            return docker_archive.load_entry(
                self.store, files, entry, reference, bounds=self.bounds
            )

    def fill(self, tree: int) -> ImageConfig:
        """See TreeSource."""
        return ImageSource(self.image, self.store).fill(tree)

    def prepare(self, destination: Path) -> ContainerBundle:
        """See BundleSource."""
        return make_bundle(destination, self.caller, self.fill, self.options)


def _chosen(path: Path, name: str, named: Mapping[str, _Entry]) -> _Entry:
    """The entry that `name` means: its whole name, its familiar one, or its tag; the only one."""
    if not name:
        different = list({id(entry): entry for entry in named.values()}.values())
        if len(different) == 1:
            return different[0]
    else:
        for text, entry in named.items():
            if name == text or text.endswith((f"/{name}", f":{name}")):
                return entry
    known = ", ".join(list(named)[:20]) or "none"
    msg = f"{path} has no image {name!r}" if name else f"{path} has {len(named)} images"
    raise UsageError(msg, next_step=f"name one of: {known}")


def _made_up(digest: str) -> Reference:
    """A reference for an image that has none."""
    return parse_reference(f"localhost/imported:{digest.partition(':')[2][:16]}")


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
        return config._replace(**changes)

    def prepare(self, destination: Path) -> ContainerBundle:
        """See BundleSource."""
        return make_bundle(destination, self.caller, self.fill, self.options)

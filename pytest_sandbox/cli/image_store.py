"""The verbs of `pytest-sandbox image` for the store: images that run without a daemon."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from pytest_sandbox.cli.options import IMAGES, REGISTRIES, STORE, with_options
from pytest_sandbox.cli.project import cli_settings
from pytest_sandbox.errors import ImageUnavailable, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pytest_sandbox.oci.images import Image
    from pytest_sandbox.oci.platforms import Platform
    from pytest_sandbox.oci.reference import Reference
    from pytest_sandbox.oci.registry import Registry
    from pytest_sandbox.oci.store import Collected, Store
    from pytest_sandbox.settings import Settings

_POLICIES: Final = ("always", "missing", "never")
_FORMATS: Final = ("oci", "oci-archive", "docker-archive")


@contextlib.contextmanager
def open_store(settings: Settings | None = None) -> Iterator[Store]:
    """The user's store, with a supervisor that starts when it is needed and ends with the block."""
    from pytest_sandbox.folders import data_folder
    from pytest_sandbox.oci.ids import find_ids
    from pytest_sandbox.oci.store import Store
    from pytest_sandbox.oci.supervisor import Supervisor

    supervisor = Supervisor(find_ids)
    try:
        wanted = (settings or cli_settings()).oci_snapshotter
        yield Store(data_folder() / "oci", supervisor, wanted)
    finally:
        supervisor.close()


def stored_images() -> list[Image]:
    """Every image of the store; none where there is no store yet."""
    from pytest_sandbox.folders import data_folder

    if not (data_folder() / "oci" / "images").is_dir():
        return []
    with open_store() as store:
        return store.images()


def collect(*, older_than: float) -> Collected | None:
    """Prune the store, if there is one."""
    from pytest_sandbox.folders import data_folder

    if not (data_folder() / "oci" / "images").is_dir():
        return None
    with open_store() as store:
        return store.collect(older_than=older_than)


def forget_packages(*, older_than: float) -> int:
    """Remove package lists and archives that builds have not used for so many seconds; the bytes
    that went.
    """
    from pytest_sandbox.folders import data_folder
    from pytest_sandbox.runtimes.oci import build_packages

    if not (data_folder() / "oci" / build_packages.FOLDER).is_dir():
        return 0
    with open_store() as store:
        return build_packages.prune(store, older_than=older_than)


def _registry(settings: Settings, say: Callable[[str], None]) -> Registry:
    from pytest_sandbox.runtimes.oci.registry_settings import open_registry

    return open_registry(settings, os.environ, say)


def _platform(text: str | None) -> Platform:
    from pytest_sandbox.oci.platforms import host_platform, parse_platform

    return parse_platform(text) if text else host_platform()


def _reference(text: str) -> Reference:
    from pytest_sandbox.oci.reference import parse_reference

    return parse_reference(text)


def _stored(store: Store, text: str, platform: str | None) -> Image:
    """An image of the store, for the platform or the only one there is."""
    reference = _reference(text)
    found = store.image(reference, _platform(platform))
    if found is None and platform is None:
        others = [image for image in store.images() if image.reference == reference]
        if len(others) == 1:
            found = store.image(reference, others[0].platform)
    if found is None:
        msg = f"{reference.familiar} is not in the store"
        step = f"pytest-sandbox image pull {reference.familiar}"
        raise ImageUnavailable(msg, next_step=step)
    return found


def _told(image: Image) -> str:
    count = len(image.layers)
    layers = f"{count} layer{'' if count == 1 else 's'}"
    size = f"{image.size / 1e6:.0f} MB"
    digest = f", {image.digest}" if image.digest else ""
    return f"{image.reference.familiar}: {image.platform}, {layers}, {size}{digest}"


def _say(line: str) -> None:
    click.echo(printable(line), err=True)


_platform_option = click.option(
    "--platform", metavar="OS/ARCH", help="Like linux/arm64; default: this machine's."
)
_quiet_option = click.option("-q", "--quiet", is_flag=True, help="No progress.")


@click.command("pull")
@click.argument("reference", metavar="REF")
@_platform_option
@click.option(
    "--pull",
    "policy",
    type=click.Choice(_POLICIES),
    default="always",
    help="When the registry is asked: always (the default), missing, never.",
)
@click.option(
    "--no-archives",
    is_flag=True,
    help="Keep only what runs: the image can then be neither pushed nor exported.",
)
@with_options(IMAGES)
@_quiet_option
def pull_command(
    reference: str,
    platform: str | None,
    policy: str,
    *,
    no_archives: bool,
    quiet: bool,
    **options: object,
) -> None:
    """Pull an image from a registry and unpack it."""
    from pytest_sandbox.oci.applying import warm_up
    from pytest_sandbox.oci.progress import display

    name, wanted = _reference(reference), _platform(platform)
    settings = cli_settings(**options)
    with open_store(settings) as store, display(sys.stderr, quiet=quiet) as shown:
        if policy != "never" and store.image(name, wanted) is None:
            warm_up(store)  # it starts while the client of registries is loaded
        from pytest_sandbox.oci.pull import pull

        with _registry(settings, shown.say) as registry:
            image = pull(
                name,
                store=store,
                registry=registry,
                platform=wanted,
                policy=policy,  # type: ignore[arg-type]  # one of the choices
                keep_blobs=not no_archives,
                bounds=registry.bounds,
                display=shown,
            )
    click.echo(_told(image))


@click.command("push")
@click.argument("reference", metavar="REF")
@click.argument("target", metavar="[TARGET]", required=False)
@_platform_option
@with_options(REGISTRIES)
@_quiet_option
def push_command(
    reference: str,
    target: str | None,
    platform: str | None,
    *,
    quiet: bool,
    **options: object,
) -> None:
    """Push an image to its registry, or under the name TARGET."""
    from pytest_sandbox.oci.layout import stored_manifest
    from pytest_sandbox.oci.local_images import complete
    from pytest_sandbox.oci.progress import display
    from pytest_sandbox.oci.push import push_image

    goal = _reference(target or reference)
    settings = cli_settings(**options)
    with (
        open_store(settings) as store,
        display(sys.stderr, quiet=quiet) as shown,
        _registry(settings, shown.say) as registry,
    ):
        image = complete(store, _stored(store, reference, platform))
        store.touch(image)
        same = image.reference.registry == goal.registry
        digest = push_image(
            registry,
            goal,
            stored_manifest(store, image),
            lambda blob: store.blobs.open(blob.digest),
            mount_from=[image.reference.repository] if same else [],
            display=shown,
        )
    click.echo(f"{goal.familiar}: {digest}")


@click.command("import")
@click.argument("path", type=click.Path(path_type=Path))
@click.argument("reference", metavar="[REF]", required=False)
@_platform_option
@with_options(STORE)
def import_command(
    path: Path, reference: str | None, platform: str | None, **options: object
) -> None:
    """Take images from an OCI layout (folder or tar) or an archive of `docker save`.

    REF names the image; without it, the names in the file count.
    """
    from pytest_sandbox.oci.importing import import_images
    from pytest_sandbox.runtimes.oci.registry_settings import bounds_of

    name = _reference(reference) if reference else None
    settings = cli_settings(**options)
    with open_store(settings) as store:
        found = import_images(
            store,
            path,
            name,
            platform=_platform(platform),
            bounds=bounds_of(settings),
            say=_say,
        )
    for image in found:
        click.echo(_told(image))


@click.command("export")
@click.argument("reference", metavar="REF")
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "form",
    type=click.Choice(_FORMATS),
    help="Default: oci-archive where PATH ends with .tar, else oci, a folder.",
)
@_platform_option
def export_command(reference: str, path: Path, form: str | None, platform: str | None) -> None:
    """Write an image to PATH: an OCI layout or an archive that `docker load` takes."""
    from pytest_sandbox.oci.exporting import export_image

    chosen = form or ("oci-archive" if path.suffix == ".tar" else "oci")
    with open_store() as store:
        image = _stored(store, reference, platform)
        store.touch(image)
        image = export_image(store, image, path, chosen)  # type: ignore[arg-type]  # a choice
    click.echo(f"{path}: {_told(image)}")


@click.command("unpack")
@click.argument("reference", metavar="REF")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@_platform_option
@click.option("--pull", "policy", type=click.Choice(_POLICIES), default="missing")
@with_options(IMAGES)
@_quiet_option
def unpack_command(
    reference: str,
    folder: Path,
    platform: str | None,
    policy: str,
    *,
    quiet: bool,
    **options: object,
) -> None:
    """Unpack an image into DIR/rootfs.

    As root the files get the image's own ids; as an ordinary user those that stand for them.
    """
    from pytest_sandbox.oci.progress import display
    from pytest_sandbox.oci.pull import pull
    from pytest_sandbox.oci.unpack_image import unpack_image

    name = _reference(reference)
    settings = cli_settings(**options)
    with (
        open_store(settings) as store,
        display(sys.stderr, quiet=quiet) as shown,
        _registry(settings, shown.say) as registry,
    ):
        image = pull(
            name,
            store=store,
            registry=registry,
            platform=_platform(platform),
            policy=policy,  # type: ignore[arg-type]  # one of the choices
            bounds=registry.bounds,
            display=shown,
        )
        unpack_image(store, image, folder, bounds=registry.bounds, say=_say)
    click.echo(f"{folder / 'rootfs'}: {_told(image)}")


@click.command("rm")
@click.argument("references", metavar="REF...", nargs=-1, required=True)
@_platform_option
def rm_command(references: Sequence[str], platform: str | None) -> None:
    """Remove images from the store, and what only they have. Running sandboxes keep theirs."""
    missing = False
    with open_store() as store:
        everything = store.images()
        chosen = []
        for text in references:
            name = _reference(text)
            found = [image for image in everything if image.reference == name]
            if platform is not None:
                wanted = _platform(platform)
                found = [image for image in found if image.platform == wanted]
            if not found:
                missing = True
                _say(f"pytest-sandbox: {name.familiar} is not in the store")
            chosen += found
        done = store.collect(older_than=0.0, images=chosen) if chosen else None
    for image in done.images if done else ():
        click.echo(f"removed {image.reference.familiar} ({image.platform})")
    if done:
        click.echo(f"{done.bytes / 1e6:.0f} MB freed")
    sys.exit(1 if missing else 0)


@click.command("verify")
@click.argument("references", metavar="[REF...]", nargs=-1)
def verify_command(references: Sequence[str]) -> None:
    """Hold stored images to their digests, archives and files alike; all without REF.

    What is damaged is set aside, so that the next pull brings it again. Exit status 1 then.
    """
    from pytest_sandbox.oci.store.verify import verify

    with open_store() as store:
        images = [_stored(store, text, None) for text in references] or store.images()
        began = time.monotonic()
        found = verify(store, images)
    for line in found.damage:
        click.echo(printable(f"damaged: {line}"))
    for line in found.unproved:
        click.echo(printable(f"not verified: {line}: its archive was not kept"))
    took = time.monotonic() - began
    verdict = f"{len(found.damage)} damaged" if found.damage else "all is well"
    looked = f"{len(images)} images, {found.layers} layers, {found.blobs} blobs"
    click.echo(f"{looked}: {verdict} ({took:.1f} s)")
    if found.damage:
        _say("next: pull or import those images again")
    sys.exit(1 if found.damage else 0)

"""Images out of files, into the store: OCI layouts and archives of `docker save`, told by what is
in them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_sandbox.errors import InvalidImage, UsageError
from pytest_sandbox.oci import docker_archive, layout
from pytest_sandbox.oci.applying import warm_up
from pytest_sandbox.oci.bounds import DEFAULT_BOUNDS, Bounds
from pytest_sandbox.oci.layout_files import open_files

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pytest_sandbox.oci.images import Image
    from pytest_sandbox.oci.layout_files import Files
    from pytest_sandbox.oci.platforms import Platform
    from pytest_sandbox.oci.reference import Reference
    from pytest_sandbox.oci.store import Store


def import_images(
    store: Store,
    path: Path,
    reference: Reference | None = None,
    *,
    platform: Platform | None = None,
    bounds: Bounds = DEFAULT_BOUNDS,
    say: Callable[[str], None] = lambda _text: None,
) -> list[Image]:
    """Take the images of a layout or archive into the store, under the names that it gives them.

    With `reference` the only image there is gets that name; of several it takes the one that the
    layout calls so, or by its tag. Where a name of the layout is only a tag, `reference` has to be
    given. `platform` chooses from an index. Raises UsageError, InvalidImage, ImageUnavailable.
    """
    warm_up(store)
    store.sweep_dead_work()
    with store.work() as work:
        files = open_files(path, work.folder, bounds)
        if files.has(layout.INDEX) and files.has(layout.MARK):
            return _from_layout(
                store, files, path, reference, platform=platform, bounds=bounds, say=say
            )
        if files.has(docker_archive.MANIFEST):
            return _from_archive(store, files, path, reference, bounds=bounds, say=say)
    msg = f"{path} is neither an OCI layout nor an archive of docker save"
    raise InvalidImage(msg, next_step="a layout has oci-layout and index.json in it")


def _from_layout(
    store: Store,
    files: Files,
    path: Path,
    reference: Reference | None,
    *,
    platform: Platform | None,
    bounds: Bounds,
    say: Callable[[str], None],
) -> list[Image]:
    found = layout.entries(files, bounds)
    if not found:
        msg = f"{path} has no images"
        raise InvalidImage(msg)
    chosen: list[tuple[layout.Entry, Reference]] = []
    if reference is None:
        for entry in found:
            own = entry.reference()
            if own is None:
                msg = f"{path} calls an image {entry.name or '(nothing)'}, which is no whole name"
                raise UsageError(msg, next_step="give the image's name behind the path")
            chosen.append((entry, own))
    elif len(found) == 1:
        chosen.append((found[0], reference))
    else:
        same = [
            entry
            for entry in found
            if entry.name == reference.tag or entry.reference() == reference
        ]
        if len(same) != 1:
            names = ", ".join(sorted(entry.name or "(no name)" for entry in found)[:20])
            msg = f"{path} has {len(found)} images, and {len(same)} of them is {reference.familiar}"
            raise UsageError(msg, next_step=f"name one of them: {names}")
        chosen.append((same[0], reference))
    return [
        layout.load_entry(store, files, entry, name, platform=platform, bounds=bounds, say=say)
        for entry, name in chosen
    ]


def _from_archive(
    store: Store,
    files: Files,
    path: Path,
    reference: Reference | None,
    *,
    bounds: Bounds,
    say: Callable[[str], None],
) -> list[Image]:
    found = docker_archive.entries(files, bounds)
    if not found:
        msg = f"{path} has no images"
        raise InvalidImage(msg)
    if reference is not None and len(found) > 1:
        found = [entry for entry in found if reference in entry.references]
        if not found:
            msg = f"{path} has several images, and none of them is {reference.familiar}"
            raise UsageError(msg, next_step="leave the name out to take them all")
    images: list[Image] = []
    for entry in found:
        names = (reference,) if reference is not None else entry.references
        if not names:
            msg = f"{path} has an image without a name"
            raise UsageError(msg, next_step="give the image's name behind the path")
        image = docker_archive.load_entry(store, files, entry, names[0], bounds=bounds, say=say)
        images.append(image)
        images += [store.record(replace(image, reference=name)) for name in names[1:]]
    return images

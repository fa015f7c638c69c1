"""A whole image as a plain folder, with the image's own ids."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Final

from pytest_sandbox.errors import Blame, ImageUnavailable, UsageError
from pytest_sandbox.oci.bounds import DEFAULT_BOUNDS, Bounds
from pytest_sandbox.oci.local_images import complete

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pytest_sandbox.oci.images import Image
    from pytest_sandbox.oci.store import Store

_JOBS: Final = "pytest_sandbox.oci.layers.jobs"


def unpack_image(
    store: Store,
    image: Image,
    folder: Path,
    *,
    bounds: Bounds = DEFAULT_BOUNDS,
    say: Callable[[str], None] = lambda _text: None,
) -> None:
    """Unpack the layers of an image into `folder`/rootfs, which must not be there yet.

    `folder` is made 0700, since there are setuid files in it, if it is not there. Root gives the
    files the image's own ids; for an ordinary user they are the subordinate ones that sandboxes
    have. Device nodes become empty files. Raises UsageError, InvalidImage, ImageUnavailable.
    """
    image = complete(store, image)
    target = folder / "rootfs"
    try:
        if not folder.is_dir():
            folder.mkdir(mode=0o700)
        target.mkdir(mode=0o755)
    except OSError as wrong:
        msg = f"{target} cannot be made: {wrong.strerror}"
        raise UsageError(msg, next_step="give a folder that is not there yet") from None
    root = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    devices = 0
    try:
        for number, layer in enumerate(image.layers, 1):
            if layer.blob is None:  # never: it is complete
                msg = f"layer {number} of {image.reference.familiar} has no archive"
                raise ImageUnavailable(msg, blame=Blame.HOST, next_step="pull it again")
            args = {
                "layer": f"{image.reference.familiar}, layer {number}",
                "diff_id": layer.diff_id,
                "bounds": bounds._asdict(),
            }
            with store.blobs.open(layer.blob.digest) as file:
                fds = [file.fileno(), root]
                told = store.caller.call(f"{_JOBS}:apply", args, fds, where="host")
            devices += told["devices"]
            if told["xattrs"]:
                say(f"layer {number}: {told['xattrs']} extended attributes could not be set")
    except BaseException:
        _remove(store, folder)
        raise
    finally:
        os.close(root)
    if devices:
        say(f"{image.reference.familiar}: {devices} device nodes became empty files")
    ids = store.caller.ids
    if ids.rootless:
        first = ids.uids[1].outside if len(ids.uids) > 1 else 0
        say(
            f"{target}: the image's ids above 0 are {first} and up here; only root can do otherwise"
        )


def _remove(store: Store, folder: Path) -> None:
    """Remove a half-made root file system, whoever owns its files."""
    if os.geteuid() == 0:
        shutil.rmtree(folder / "rootfs", ignore_errors=True)
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        store.caller.call(f"{_JOBS}:remove", {"names": ["rootfs"]}, [descriptor], where="host")
    finally:
        os.close(descriptor)

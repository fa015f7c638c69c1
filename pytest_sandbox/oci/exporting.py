"""Images out of the store, into files: written beside, renamed when they are whole."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tarfile
from typing import TYPE_CHECKING, BinaryIO, Final, Literal

from pytest_sandbox.errors import Blame, InvalidImage, UsageError
from pytest_sandbox.oci import docker_archive, layout
from pytest_sandbox.oci.bounds import STORED
from pytest_sandbox.oci.local_images import complete

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from pytest_sandbox.oci.images import Image, ImageLayer
    from pytest_sandbox.oci.store import Store

Format = Literal["oci", "oci-archive", "docker-archive"]
FORMATS: Final = ("oci", "oci-archive", "docker-archive")
_RECORD: Final = 512


def export_image(store: Store, image: Image, target: Path, form: Format = "oci") -> Image:
    """Write an image to `target`: the folder of an OCI layout, a tar of one, or a docker-archive.

    A folder must not be there yet; a file is replaced. A manifest is made for an image that was
    made here: the image returned has it. Raises UsageError, ImageUnavailable, InvalidImage.
    """
    image = complete(store, image)
    if form == "oci":
        _write_folder(target, layout.layout_files(store, image))
    elif form == "oci-archive":
        _write_tar(target, layout.layout_files(store, image))
    else:
        by_key = {layer.key: layer for layer in image.layers}

        def plain(key: str) -> Iterator[bytes]:
            return plain_blocks(store, by_key[key])

        _write_tar(target, docker_archive.archive_files([image], plain))
    return image


def plain_blocks(store: Store, layer: ImageLayer) -> Iterator[bytes]:
    """The plain tar of a layer, from its blob; held to the diff id at the end."""
    from pytest_sandbox.oci.layers.decompress import Unpacked

    assert layer.blob is not None
    with store.blobs.open(layer.blob.digest) as file:
        source = Unpacked(file.fileno(), STORED, name=layer.blob.digest)
        try:
            while block := source.take():
                yield block
        finally:
            source.close()
    if source.digest != layer.diff_id:
        msg = f"the blob {layer.blob.digest} unpacks to {source.digest}, not {layer.diff_id}"
        raise InvalidImage(msg, blame=Blame.HOST, next_step="pull or import the image again")


def _write_folder(target: Path, files: Iterable[tuple[str, int | None, Iterator[bytes]]]) -> None:
    if target.is_symlink() or (target.exists() and not _is_empty(target)):
        msg = f"{target} is there already"
        raise UsageError(msg, next_step="give a folder that is not there")
    aside = _aside(target)
    try:
        aside.mkdir()
        for name, _, blocks in files:
            file = aside / name
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("xb") as out:
                out.writelines(blocks)
        aside.rename(target)  # an empty folder is replaced
    except OSError as wrong:
        raise _cannot(target, wrong) from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write_tar(target: Path, files: Iterable[tuple[str, int | None, Iterator[bytes]]]) -> None:
    if target.is_dir():
        msg = f"{target} is a folder, where a file is to be written"
        raise UsageError(msg, next_step="give the name of a file, such as image.tar")
    aside = _aside(target)
    try:
        with aside.open("xb") as out:
            folders: set[str] = set()
            for name, _, blocks in files:
                _write_member(out, name, blocks, folders)
            out.write(bytes(2 * _RECORD))
        aside.rename(target)
    except OSError as wrong:
        raise _cannot(target, wrong) from None
    finally:
        with contextlib.suppress(OSError):
            aside.unlink()


def _write_member(out: BinaryIO, name: str, blocks: Iterator[bytes], folders: set[str]) -> None:
    parts = name.split("/")
    for depth in range(1, len(parts)):
        folder = "/".join(parts[:depth])
        if folder not in folders:
            folders.add(folder)
            out.write(_header(f"{folder}/", 0, tarfile.DIRTYPE, 0o755))
    at = out.tell()
    out.write(bytes(_RECORD))
    size = 0
    for block in blocks:
        size += len(block)
        out.write(block)
    out.write(bytes(-size % _RECORD))
    end = out.tell()
    out.seek(at)
    out.write(_header(name, size, tarfile.REGTYPE, 0o644))
    out.seek(end)


def _header(name: str, size: int, kind: bytes, mode: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.mode = size, kind, mode
    return info.tobuf(tarfile.GNU_FORMAT)


def _aside(target: Path) -> Path:
    return target.parent / f".{target.name}.{secrets.token_hex(6)}"


def _is_empty(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    with os.scandir(folder) as found:
        return next(found, None) is None


def _cannot(target: Path, wrong: OSError) -> UsageError:
    msg = f"{target} cannot be written: {wrong.strerror or wrong}"
    return UsageError(msg, next_step="give a place where you may write, with room for the image")

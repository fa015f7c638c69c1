"""What a reference stands for on a platform: one small file each in images/, and pins in pins/."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pytest_sandbox.errors import ImageUnavailable, InvalidImage, UsageError
from pytest_sandbox.oci.bounds import STORED
from pytest_sandbox.oci.descriptors import Descriptor, parse_descriptor
from pytest_sandbox.oci.images import Image, ImageLayer
from pytest_sandbox.oci.manifests import parse_config
from pytest_sandbox.oci.platforms import Platform, normalise, platform_of, runs
from pytest_sandbox.oci.reference import Reference, parse_reference
from pytest_sandbox.oci.store.files import names, read_json, write_json

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_sandbox.oci.store.blobs import Blobs


class Records:
    """The image records of one store."""

    def __init__(self, images: Path, pins: Path, blobs: Blobs) -> None:
        self._images = images
        self._pins = pins
        self._blobs = blobs
        self._known: dict[str, tuple[tuple[int, int, int], Image]] = {}

    def find(self, reference: Reference, wanted: Platform) -> Image | None:
        """The image that a reference stands for on a platform, or on a lower variant of it.

        A reference with a digest is also found by the manifest's or the index's digest under
        another tag of the same repository.
        """
        exact = self._read(self._file(reference, wanted))
        if exact is not None:
            return exact
        found = [image for image in self.all() if runs(image.platform, wanted)]
        same = [image for image in found if image.reference == reference]
        if not same and reference.digest:
            same = [
                image
                for image in found
                if image.reference.name == reference.name
                and reference.digest in (image.digest, image.index)
            ]
        return max(same, key=lambda image: image.stored, default=None)

    def all(self) -> list[Image]:
        """Every image, by reference and platform."""
        found = [self._read(self._images / name) for name in names(self._images)]
        present = [image for image in found if image is not None]
        return sorted(present, key=lambda image: (str(image.reference), str(image.platform)))

    def put(self, image: Image) -> None:
        """Record an image under its reference and platform, in the place of what was there."""
        document: dict[str, Any] = {
            "format": 1,
            "reference": str(image.reference),
            "platform": _platform_document(image.platform),
            "digest": image.digest,
            "index": image.index,
            "config": image.config_digest,
            "size": image.size,
            "stored": image.stored,
            "layers": [
                {
                    "key": layer.key,
                    "diff_id": layer.diff_id,
                    "blob": None if layer.blob is None else layer.blob.document(),
                }
                for layer in image.layers
            ],
        }
        write_json(self._file(image.reference, image.platform), document)

    def touch(self, image: Image) -> None:
        """Note that an image is in use now."""
        with contextlib.suppress(FileNotFoundError):
            os.utime(self._file(image.reference, image.platform))

    def remove(self, image: Image) -> None:
        """Forget an image. Its layers go with the next sweep, if nothing else has them."""
        with contextlib.suppress(FileNotFoundError):
            self._file(image.reference, image.platform).unlink()

    def pin(self, reference: Reference) -> None:
        """Keep what a reference stands for, now and later, from every sweep."""
        write_json(self._pin(reference), {"reference": str(reference), "since": time.time()})

    def unpin(self, reference: Reference) -> None:
        """Undo `pin`."""
        with contextlib.suppress(FileNotFoundError):
            self._pin(reference).unlink()

    def _pin(self, reference: Reference) -> Path:
        return self._pins / f"{hashlib.sha256(str(reference).encode()).hexdigest()}.json"

    def _file(self, reference: Reference, platform: Platform) -> Path:
        text = f"{reference}\n{normalise(platform)}"
        return self._images / f"{hashlib.sha256(text.encode()).hexdigest()}.json"

    def _read(self, file: Path) -> Image | None:
        """A record is put in place whole, by renaming, and touched: one with the same number, times
        and size was read already. Every start of a sandbox asks for its image.
        """
        try:
            seen = file.stat()
        except OSError:
            return None
        mark = (seen.st_ino, seen.st_mtime_ns, seen.st_ctime_ns)
        before, known = self._known.get(file.name, (None, None))
        if known is None or before != mark:
            known = self._parse(file)
            if known is None:
                return None
            self._known[file.name] = mark, known
        pinned = self._pin(known.reference).exists()
        return known if known.pinned == pinned else replace(known, pinned=pinned)

    def _parse(self, file: Path) -> Image | None:
        found = read_json(file)
        if found is None or found.get("format") != 1:
            return None
        try:
            reference = parse_reference(found["reference"])
            raw = self._blobs.read(found["config"])
            return Image(
                reference=reference,
                platform=platform_of(found["platform"], where=str(file)),
                digest=str(found["digest"]),
                index=str(found["index"]),
                config=parse_config(raw, STORED),
                raw=raw,
                config_digest=str(found["config"]),
                layers=tuple(_layer(entry, str(file)) for entry in found["layers"]),
                size=int(found["size"]),
                stored=float(found["stored"]),
                last_use=file.stat().st_mtime,
            )
        except (KeyError, TypeError, ValueError, OSError):
            return None
        except (InvalidImage, ImageUnavailable, UsageError):
            return None  # its config is gone or damaged: the image has to be pulled again


def _layer(entry: dict[str, Any], where: str) -> ImageLayer:
    blob: Descriptor | None = None
    if entry["blob"] is not None:
        blob = parse_descriptor(entry["blob"], where=where)
    return ImageLayer(str(entry["key"]), str(entry["diff_id"]), blob)


def _platform_document(platform: Platform) -> dict[str, Any]:
    shown = {
        "os": platform.os,
        "architecture": platform.architecture,
        "variant": platform.variant,
        "os.version": platform.os_version,
        "os.features": list(platform.os_features),
    }
    return {name: value for name, value in shown.items() if value}

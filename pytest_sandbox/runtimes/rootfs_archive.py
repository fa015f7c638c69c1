"""A root file system as an image archive (`docker save`'s format), which every engine loads.

Docker's `import` marks whatever it gets with its own architecture; an archive says its own.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
import tempfile
import time
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pytest_sandbox.targets import Target

_PATH: Final = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_BLOCK: Final = 1 << 20


@contextmanager
def image_archive(
    rootfs: IO[bytes], reference: str, target: Target, labels: Mapping[str, str]
) -> Iterator[Iterator[bytes]]:
    """The archive of a one-layer image, in pieces. `rootfs` is an uncompressed tar; it is copied to
    a temporary file, since the layer's size and hash come first."""
    with tempfile.TemporaryFile(prefix="pytest-sandbox-rootfs-") as layer:
        digest, size = hashlib.sha256(), 0
        while chunk := rootfs.read(_BLOCK):
            digest.update(chunk)
            size += len(chunk)
            layer.write(chunk)
        layer.seek(0)
        config = json.dumps(
            {
                "architecture": target.arch,
                "os": target.os,
                "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "config": {"Cmd": ["/bin/sh"], "Env": [_PATH], "Labels": dict(labels)},
                "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest.hexdigest()}"]},
                "history": [{"created_by": "pytest-sandbox"}],
            }
        ).encode()
        name = f"{hashlib.sha256(config).hexdigest()}.json"
        manifest = [{"Config": name, "RepoTags": [reference], "Layers": ["layer.tar"]}]
        yield _pieces(layer, size, {name: config, "manifest.json": json.dumps(manifest).encode()})


def _pieces(layer: IO[bytes], size: int, files: Mapping[str, bytes]) -> Iterator[bytes]:
    yield _header("layer.tar", size)
    while chunk := layer.read(_BLOCK):
        yield chunk
    yield _padding(size)
    for name, data in files.items():
        yield _header(name, len(data)) + data + _padding(len(data))
    yield bytes(2 * tarfile.BLOCKSIZE)


def _header(name: str, size: int) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size = size
    return entry.tobuf()


def _padding(size: int) -> bytes:
    return bytes(-size % tarfile.BLOCKSIZE)

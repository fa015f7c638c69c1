"""Small images for tests: their layers, as tars and as OCI layouts."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile

from pytest_sandbox.oci.platforms import host_platform


def sha(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def tar(*entries):
    """A plain tar of (name, content) pairs: bytes are files, None folders, `-> x` links, and a
    TarInfo stands for itself."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in entries:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.mtime = 1_700_000_000
            if content is None:
                info.type, info.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(info)
            elif isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content.removeprefix("-> ")
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


BASE = tar(("etc/", None), ("etc/name", b"base"), ("bin/", None), ("bin/sh", b"#!" * 500))
SECOND = tar(("etc/", None), ("etc/.wh.name", b""), ("etc/other", b"second"))
THIRD = tar(("bin/sh", b"third"), ("new/", None), ("new/link", "-> ../bin/sh"))


class Made:
    """An image as bytes: `manifest`, `config` and `blobs` by digest; `config` replaces parts."""

    def __init__(self, *layers, pack=lambda data: gzip.compress(data, 1, mtime=0), **config):
        platform = host_platform()
        self.diff_ids = [sha(layer) for layer in layers]
        self.packed = [pack(layer) for layer in layers]
        self.config = json.dumps(
            {
                "created": "2024-05-06T07:08:09Z",
                "os": platform.os,
                "architecture": platform.architecture,
                "config": {"Labels": {"made": "for tests"}, "Cmd": ["/bin/sh"]},
                "rootfs": {"type": "layers", "diff_ids": self.diff_ids},
                **config,
            }
        ).encode()
        self.manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": self.descriptor("application/vnd.oci.image.config.v1+json", self.config),
                "layers": [
                    self.descriptor("application/vnd.oci.image.layer.v1.tar+gzip", layer)
                    for layer in self.packed
                ],
            }
        ).encode()
        self.raw, self.manifests = self.manifest, []  # as the scripted registry takes it
        self.media_type = "application/vnd.oci.image.manifest.v1+json"
        self.digest = sha(self.manifest)
        everything = (self.manifest, self.config, *self.packed)
        self.blobs = {sha(data): data for data in everything}

    @staticmethod
    def descriptor(media_type, data):
        return {"mediaType": media_type, "digest": sha(data), "size": len(data)}

    def layout(self, folder, name="latest"):
        """Write it as an OCI layout."""
        (folder / "blobs" / "sha256").mkdir(parents=True)
        for digest, data in self.blobs.items():
            (folder / "blobs" / "sha256" / digest.partition(":")[2]).write_bytes(data)
        top = self.descriptor("application/vnd.oci.image.manifest.v1+json", self.manifest)
        top["annotations"] = {"org.opencontainers.image.ref.name": name}
        index = {"schemaVersion": 2, "manifests": [top]}
        (folder / "index.json").write_text(json.dumps(index))
        (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        return folder

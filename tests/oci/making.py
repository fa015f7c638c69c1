"""Images made for tests: documents and layers as bytes, with the digests that name them."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from dataclasses import dataclass, field

from pytest_sandbox.oci.descriptors import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
)
from pytest_sandbox.oci.manifests import parse_manifest


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def document(value):
    return json.dumps(value, indent=1).encode()


def tar_of(files):
    """An uncompressed layer of regular files: name -> content."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def described(data, media_type, **more):
    return {"mediaType": media_type, "digest": digest(data), "size": len(data), **more}


@dataclass
class Made:
    """A document with all blobs that it names; `manifests` are the documents below an index."""

    raw: bytes
    media_type: str
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: list[Made] = field(default_factory=list)

    @property
    def digest(self):
        return digest(self.raw)

    @property
    def parsed(self):
        return parse_manifest(self.raw, self.media_type)

    def entry(self, **more):
        return described(self.raw, self.media_type, **more)


def image(*tars, architecture="amd64", variant="", config=None, **manifest):
    """An image of gzip layers; `config` and `manifest` replace what the documents hold."""
    tars = tars or (tar_of({"etc/hostname": b"made\n"}),)
    packed = [gzip.compress(tar, 1, mtime=0) for tar in tars]
    made = {
        "os": "linux",
        "architecture": architecture,
        "config": {"Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": [digest(tar) for tar in tars]},
    }
    if variant:
        made["variant"] = variant
    config = document({**made, **(config or {})})
    raw = document(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": described(config, OCI_CONFIG),
            "layers": [described(blob, f"{OCI_LAYER}+gzip") for blob in packed],
            **manifest,
        }
    )
    blobs = {digest(blob): blob for blob in [config, *packed]}
    return Made(raw, OCI_MANIFEST, blobs)


def index(entries, **more):
    """An index of (Made, platform or None) pairs, or of whole descriptors."""
    manifests, blobs, below = [], {}, []
    for entry in entries:
        if isinstance(entry, dict):
            manifests.append(entry)
            continue
        made, platform = entry
        manifests.append(made.entry(**({"platform": platform} if platform else {})))
        blobs.update(made.blobs)
        below += [made, *made.manifests]
    raw = document({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests, **more})
    return Made(raw, OCI_INDEX, blobs, below)


def on(architecture, variant=""):
    """The platform of an index's entry."""
    found = {"os": "linux", "architecture": architecture}
    return {**found, "variant": variant} if variant else found

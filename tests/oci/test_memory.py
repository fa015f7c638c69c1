"""What a hostile registry makes us take of memory: documents and layers at the edge of bounds."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest
import zstandard

from pytest_sandbox.oci.bounds import DEFAULT_BOUNDS, MIB
from pytest_sandbox.oci.descriptors import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST
from pytest_sandbox.oci.ids import NoIds, find_ids
from pytest_sandbox.oci.platforms import host_platform
from pytest_sandbox.oci.unpacking import DOWNLOADS
from tests.oci.making import Made, described, digest, index
from tests.oci.registry.scripted import Scripted

ROOT = Path(__file__).parents[2]
TOP = 1 << 30
FILES, WHITEOUTS, NAMES = 2000, 8000, 1000
_PULL = """
import json, os, resource, sys
from pathlib import Path
from pytest_sandbox.oci.ids import find_ids
from pytest_sandbox.oci.pull import pull
from pytest_sandbox.oci.reference import parse_reference
from pytest_sandbox.oci.registry import Registry
from pytest_sandbox.oci.store import Store
from pytest_sandbox.oci.supervisor import Supervisor

def peak(pid):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) << 10

folder = Path(sys.argv[1])
supervisor = Supervisor(find_ids)
supervisor.start()
try:
    store = Store(folder / "store", supervisor)
    with Registry(environ={}) as registry:
        image = pull(parse_reference(sys.argv[2]), store=store, registry=registry)
    keeper = peak(supervisor.pid)
    top = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    job = "pytest_sandbox.oci.layers.jobs:remove"
    supervisor.call(job, {"names": ["store"]}, [top], where="host")
finally:
    supervisor.close()
children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10
print(json.dumps([image.digest, len(image.layers), peak("self"), keeper, children]))
"""


def padded(value, size):
    """A document of nearly that size, whose filling costs most when it is parsed: empty objects."""
    room = size - len(json.dumps(value)) - 100
    text = json.dumps({**value, "x": 0})
    return text.replace('"x": 0', '"x":[' + "{}," * (room // 3) + "{}]").encode()


def archive(*entries):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as packed:
        for entry, content in entries:
            entry.size = len(content)
            packed.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def named(name, kind=tarfile.REGTYPE, **headers):
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.pax_headers = kind, 0o755, headers
    return entry


def many_files():
    return archive(*((named(f"d/f{number}"), b"x") for number in range(FILES)))


def many_whiteouts():
    return archive(*((named(f"d/.wh.f{number}"), b"") for number in range(WHITEOUTS)))


def long_names():
    """Paths of nearly 4096 bytes, and records of nearly 1 MiB."""
    deep = "/".join("n" * 250 for _ in range(15))
    records = {"comment": "c" * (MIB - 1000)}
    return archive(
        *((named(f"{deep}/{number:0250d}"), b"x") for number in range(NAMES)),
        *((named(f"r{number}", **records), b"x") for number in range(4)),
    )


def wide_window():
    """A zstd frame whose window is 128 MiB and is all used: random bytes come again and again."""
    noise = os.urandom(2 * MIB)
    data = archive((named("big"), noise * 68))
    options = zstandard.ZstdCompressionParameters.from_level(
        1, window_log=27, enable_ldm=True, threads=2
    )
    packer = zstandard.ZstdCompressor(compression_params=options).compressobj()
    packed = packer.compress(data) + packer.flush()
    window = zstandard.get_frame_parameters(packed).window_size
    assert window == DEFAULT_BOUNDS.zstd_window
    return data, packed


def hostile():
    """An image in an index, and every document and layer of it at its bounds."""
    plain = [many_files(), many_whiteouts(), long_names()]
    layers = [(data, gzip.compress(data, 1, mtime=0), "+gzip") for data in plain]
    # Two of them may be unpacked at the same time.
    layers += [(*wide_window(), "+zstd"), (*wide_window(), "+zstd")]
    platform = host_platform()
    config = {
        "os": platform.os,
        "architecture": platform.architecture,
        "config": {"Cmd": ["/big"]},
        "rootfs": {"type": "layers", "diff_ids": [digest(data) for data, _, _ in layers]},
    }
    config = padded(config, DEFAULT_BOUNDS.config)
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": described(config, OCI_CONFIG),
        "layers": [described(packed, OCI_LAYER + kind) for _, packed, kind in layers],
    }
    blobs = {digest(blob): blob for blob in (config, *(packed for _, packed, _ in layers))}
    image = Made(padded(manifest, DEFAULT_BOUNDS.manifest), OCI_MANIFEST, blobs)
    where = {"os": platform.os, "architecture": platform.architecture}
    if platform.variant:
        where["variant"] = platform.variant
    made = index([(image, where)])
    made.raw = padded(json.loads(made.raw), DEFAULT_BOUNDS.manifest)
    for size, bound in (
        (len(made.raw), DEFAULT_BOUNDS.manifest),
        (len(image.raw), DEFAULT_BOUNDS.manifest),
        (len(config), DEFAULT_BOUNDS.config),
    ):
        assert 0.99 * bound < size <= bound
    return made, image, len(layers)


def test_a_hostile_pull_takes_less_than_1_gib():
    """Ours, the supervisor's and as many times its largest child's as layers may come at once."""
    try:
        find_ids()
    except NoIds as lacking:
        pytest.skip(lacking.what)
    made, image, layers = hostile()
    with Scripted() as server, tempfile.TemporaryDirectory(prefix="psb-memory-") as folder:
        server.add("evil/app", "1", made)
        done = subprocess.run(
            [sys.executable, "-c", _PULL, folder, f"{server.host}/evil/app:1"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
    name, count, client, keeper, child = json.loads(done.stdout)
    assert (name, count) == (image.digest, layers)
    assert child > DEFAULT_BOUNDS.zstd_window  # the window was used, and is counted
    told = f"client {client >> 20}, supervisor {keeper >> 20}, a child {child >> 20} MiB"
    assert client + keeper + DOWNLOADS * child < TOP, told

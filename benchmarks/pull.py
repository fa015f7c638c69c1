"""Pull and unpack: from a registry on loopback to a tree that can run, beside docker pull, podman
pull, and skopeo with umoci.

Each round pulls an image that nobody has seen: the same content, but for one small file in the
lowest layer, so no engine finds a layer that it has. Ours and podman begin with empty stores,
docker with its own. What a turn has made is removed when the clock has stopped: else its pages
would be written to the disk during the turns of others.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import debian
from benchmarks.contest import Bar, Contest, environment, interleave, run_process
from benchmarks.field import remove

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from pytest_sandbox.oci.manifests import Manifest

OURS, DOCKER, PODMAN, SKOPEO = (
    "pytest-sandbox image pull",
    "docker pull",
    "podman pull",
    "skopeo copy, umoci unpack",
)
CURL = "curl | tar xz (no image, no digest)"
ROUNDS = 3
LARGE = 400 << 20
LAYERS = 4
SOURCES = ("/usr/lib", "/usr/share", "/usr/bin")
"""What the upper layers of the large image are made of: files of this machine."""
BIGGEST = 16 << 20
"""Larger files are left out: the layers are to be of one size."""
MARKER = "usr/share/round"


def contests(given: argparse.Namespace) -> Iterator[Contest]:
    """A Debian base, then an image of 400 MB: five layers, the lowest of them that base."""
    rounds = given.rounds or ROUNDS
    with ExitStack() as stack:
        temp = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pull-", dir="/tmp")))
        field = Field(stack, temp)
        base = Base(debian.of(given))
        for title, more in (("a Debian base", []), ("400 MB in five layers", field.upper(base))):
            names = [field.publish(base, more, number) for number in range(rounds)]
            layers = f"{1 + len(more)} layers" if more else "1 layer"
            size = (len(base.plain) + sum(len(plain) for plain, _ in more)) / 1e6
            yield field.contest(f"pull: {title} ({size:.0f} MB unpacked, {layers})", names, rounds)


class Field:
    """The registry, and the candidates with folders of their own; all ends with `stack`."""

    def __init__(self, stack: ExitStack, temp: Path) -> None:
        from pytest_sandbox.oci.registry import Registry

        self.temp = temp
        self.skipped: dict[str, str] = {}
        self.stack = stack
        (temp / "registry").mkdir()
        self.host = stack.enter_context(registry(temp / "registry"))
        self.client = stack.enter_context(Registry(environ={}))
        self.environ = {**environment(temp), "PYTHONPATH": str(installed(temp))}
        self.pulled: list[str] = []
        self.numbers = itertools.count()

    # --- images -----------------------------------------------------------------------------

    def upper(self, base: Base) -> list[tuple[bytes, bytes]]:
        """The other layers of the large image, plain and packed."""
        share = (LARGE - len(base.plain)) // LAYERS
        files = _files()
        found = []
        for _ in range(LAYERS):
            out = io.BytesIO()
            with tarfile.open(fileobj=out, mode="w") as archive:
                while out.tell() < share and (file := next(files, None)) is not None:
                    archive.add(file, f"opt{file}", recursive=False)
            found.append(out.getvalue())
        with ThreadPoolExecutor() as pool:
            return list(zip(found, pool.map(pack, found), strict=True))

    def publish(self, base: Base, more: list[tuple[bytes, bytes]], number: int) -> str:
        """Push one round's image; its reference."""
        from pytest_sandbox.oci.push import push_image
        from pytest_sandbox.oci.reference import parse_reference

        first = base.marked(f"round {number} of {time.time()}".encode())
        manifest, blobs = image_of([first, *more])
        name = f"{self.host}/pull/layers-{1 + len(more)}:{number}"
        push_image(
            self.client,
            parse_reference(name),
            manifest,
            lambda blob: io.BytesIO(blobs[blob.digest]),
        )
        return name

    # --- candidates -------------------------------------------------------------------------

    def contest(self, title: str, names: list[str], rounds: int) -> Contest:
        """Those that can take part, in turns."""
        single = "layers-1:" in names[0]
        candidates = {
            name: self.turns(call, names) for name, call in self.candidates(single=single).items()
        }
        samples = interleave(candidates, rounds, warmup=0)
        contest = Contest(title, samples, skipped=dict(self.skipped))
        for peer in (DOCKER, PODMAN, SKOPEO):
            if peer in contest.samples:
                ratio = contest.ratio(peer, OURS)
                contest.bars.append(Bar(f"{peer} against ours", ratio, 1.0, least=True))
        return contest

    @staticmethod
    def turns(call: Callable[[str], float], names: list[str]) -> Callable[[], float]:
        """Each call takes the next image."""
        left = iter(names)
        return lambda: call(next(left))

    def candidates(self, *, single: bool) -> dict[str, Callable[[str], float]]:
        """Name -> what pulls one image, and gives its seconds."""
        found: dict[str, Callable[[str], float]] = {OURS: self.ours}
        if self.can(DOCKER, "docker", "info"):
            found[DOCKER] = self.docker
        if self.can(PODMAN, "podman", *self.podman_folders(f"probe-{next(self.numbers)}"), "info"):
            found[PODMAN] = self.podman
        if self.can(SKOPEO, "skopeo", "--version") and self.can(SKOPEO, "umoci", "--version"):
            found[SKOPEO] = self.skopeo
        if single and self.can(CURL, "curl", "--version"):
            found[CURL] = self.curl
        return found

    def can(self, name: str, *argv: str) -> bool:
        """Whether a program answers; if not, why not is noted."""
        if shutil.which(argv[0]) is None:
            self.skipped[name] = f"no {argv[0]} on PATH"
        elif subprocess.run(argv, capture_output=True, check=False).returncode:
            self.skipped[name] = f"`{' '.join(argv[:1])}` does not work here"
        else:
            return True
        return False

    def run(self, *argv: str | Path, **more: str) -> float:
        return run_process(argv, cwd=self.temp, env={**self.environ, **more}, expect={0})

    def folder(self, kind: str) -> Path:
        return self.temp / f"{kind}{next(self.numbers)}"

    def ours(self, name: str) -> float:
        data = self.folder("ours")
        command = [sys.executable, "-m", "pytest_sandbox.cli", "image", "pull", "-q", name]
        took = self.run(*command, PYTEST_SANDBOX_DATA=str(data))
        marks = list(data.glob(f"oci/layers/*/diff/{MARKER}"))
        _expect(len(marks) == 1 and marks[0].read_bytes().startswith(b"round"))
        remove(data)
        return took

    def docker(self, name: str) -> float:
        took = self.run("docker", "pull", "-q", name)
        self.run("docker", "image", "inspect", name)
        self.run("docker", "rmi", name)
        return took

    def podman_folders(self, name: str) -> list[str]:
        # Podman takes no run folder with a longer name.
        run = tempfile.mkdtemp(prefix="p-", dir="/tmp")
        self.stack.callback(shutil.rmtree, run, ignore_errors=True)
        return ["--root", str(self.temp / f"podman-{name}"), "--runroot", run]

    def podman(self, name: str) -> float:
        where = self.podman_folders(str(next(self.numbers)))
        self.run("podman", *where, "info")  # what it sets up once does not count
        took = self.run("podman", *where, "pull", "-q", "--tls-verify=false", name)
        self.run("podman", *where, "image", "inspect", name)
        self.run("podman", *where, "rmi", "--all", "--force")
        return took

    def skopeo(self, name: str) -> float:
        layout, bundle = self.folder("layout"), self.folder("bundle")
        copy = ["skopeo", "copy", "-q", "--src-tls-verify=false"]
        rootless = [] if os.geteuid() == 0 else ["--rootless"]
        took = self.run(*copy, f"docker://{name}", f"oci:{layout}:x")
        took += self.run("umoci", "unpack", *rootless, "--image", f"{layout}:x", bundle)
        _expect((bundle / "rootfs" / MARKER).is_file())
        shutil.rmtree(bundle)
        shutil.rmtree(layout)
        return took

    def curl(self, name: str) -> float:
        tree = self.folder("tree")
        tree.mkdir()
        place, _, tag = name.removeprefix(f"{self.host}/").rpartition(":")
        top = f"http://{self.host}/v2/{place}"
        request = urllib.request.Request(
            f"{top}/manifests/{tag}",
            headers={"Accept": "application/vnd.oci.image.manifest.v1+json"},
        )
        with urllib.request.urlopen(request) as answer:
            digest = json.load(answer)["layers"][0]["digest"]
        script = 'curl -s "$1" | tar -xz -C "$2"'
        took = self.run("sh", "-c", script, "sh", f"{top}/blobs/{digest}", tree)
        shutil.rmtree(tree)
        return took


class Base:
    """A plain tar, packed once: each round's layer is the same with one more file at its end."""

    def __init__(self, tar: bytes) -> None:
        import zlib

        end = 0
        with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
            for member in archive:
                size = member.size if member.isreg() else 0
                end = max(end, member.offset_data + -(-size // 512) * 512)
        self.plain = tar[:end]
        self._packer = zlib.compressobj(6, zlib.DEFLATED, 31)
        self._packed = self._packer.compress(self.plain)

    def marked(self, text: bytes) -> tuple[bytes, bytes]:
        """The layer with MARKER, plain and packed."""
        info = tarfile.TarInfo(MARKER)
        info.size = len(text)
        rest = info.tobuf() + text.ljust(512, b"\0") + bytes(1024)
        packer = self._packer.copy()
        return self.plain + rest, self._packed + packer.compress(rest) + packer.flush()


def pack(plain: bytes) -> bytes:
    """Gzip, as most registries hold layers."""
    import zlib

    packer = zlib.compressobj(6, zlib.DEFLATED, 31)
    return packer.compress(plain) + packer.flush()


def image_of(layers: list[tuple[bytes, bytes]]) -> tuple[Manifest, dict[str, bytes]]:
    """An image of some layers, plain and packed: its manifest, and its blobs by digest."""
    from pytest_sandbox.oci.descriptors import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST
    from pytest_sandbox.oci.manifests import Manifest, parse_manifest
    from pytest_sandbox.oci.platforms import host_platform

    platform = host_platform()
    diff_ids = [_digest(plain) for plain, _ in layers]
    config = json.dumps(
        {
            "os": platform.os,
            "architecture": platform.architecture,
            "config": {"Cmd": ["/bin/sh"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        }
    ).encode()

    def described(kind: str, data: bytes) -> dict[str, Any]:
        return {"mediaType": kind, "digest": _digest(data), "size": len(data)}

    packed = [data for _, data in layers]
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": described(OCI_CONFIG, config),
        "layers": [described(f"{OCI_LAYER}+gzip", data) for data in packed],
    }
    manifest = parse_manifest(json.dumps(document).encode(), OCI_MANIFEST)
    assert isinstance(manifest, Manifest)
    return manifest, {_digest(data): data for data in (config, *packed)}


@contextmanager
def registry(folder: Path) -> Iterator[str]:
    """A docker-registry on loopback; where it is reached."""
    program = shutil.which("docker-registry") or shutil.which("registry")
    if program is None:
        sys.exit("pull: docker-registry is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"localhost:{free.getsockname()[1]}"
    config = folder / "config.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: error}}\nhttp: {{addr: '{host}'}}\n"
        f"storage: {{filesystem: {{rootdirectory: {folder}/data}}}}\n"
    )
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, "serve", str(config)], stdout=log, stderr=log)
    try:
        for _ in range(200):
            try:
                urllib.request.urlopen(f"http://{host}/v2/", timeout=5).close()
                break
            except OSError:
                time.sleep(0.05)
        yield host
    finally:
        process.kill()
        process.wait()


def installed(temp: Path) -> Path:
    """A copy of the package with its bytecode, as an installation has it; where it is."""
    import compileall

    import pytest_sandbox

    source = Path(pytest_sandbox.__file__).parent
    shutil.copytree(source, temp / "site" / source.name, ignore=shutil.ignore_patterns("*.pyc"))
    compileall.compile_dir(temp / "site", quiet=1)
    return temp / "site"


def _files() -> Iterator[str]:
    for top in SOURCES:
        for folder, _, names in os.walk(top):
            for name in sorted(names):
                path = Path(folder, name)
                if path.is_symlink() or (
                    path.is_file() and path.stat().st_size < BIGGEST and os.access(path, os.R_OK)
                ):
                    yield str(path)


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _expect(good: bool) -> None:
    if not good:
        sys.exit("pull: a candidate did not do its work")


if __name__ == "__main__":
    from benchmarks.__main__ import main

    sys.exit(main(names=("pull",)))

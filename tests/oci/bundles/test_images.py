"""Bundles from images: of a store, of an OCI layout (folder and tar), of a docker-archive."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from typing import TYPE_CHECKING, Any

import pytest

from pytest_sandbox.errors import InvalidImage, UsageError
from pytest_sandbox.oci.bounds import Bounds
from pytest_sandbox.oci.sources import DockerArchiveSource, ImageSource, LayoutSource
from pytest_sandbox.oci.store import Store
from tests.oci.bundles.conftest import remove_as_root
from tests.oci.bundles.schema import violations
from tests.oci.making import Made, image
from tests.oci.requiring import program

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pytest_sandbox.oci.supervisor.client import Supervisor
    from tests.oci.bundles.conftest import Engine

NAME = "localhost/tests/tiny:1"


@pytest.fixture
def store(tmp_path: Path, supervisor: Supervisor) -> Iterator[Store]:
    found = Store(tmp_path / "store", supervisor)
    yield found
    remove_as_root(supervisor, tmp_path, "store")


def layer_of(root: Path) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.add(root, "./")
    return out.getvalue()


def second_layer() -> bytes:
    """Hides a file, adds one, changes a folder's mode."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, text in (("data/.wh.seed", b""), ("srv/page", b"hello\n")):
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))
        member = tarfile.TarInfo("tmp")
        member.type, member.mode = tarfile.DIRTYPE, 0o1700
        archive.addfile(member)
    return out.getvalue()


@pytest.fixture
def made(tiny_root: Path) -> Made:
    """An image of two layers that serves a page."""
    script = "cat /srv/page; ls /data | wc -l; stat -c %a /tmp"
    inner = {"Cmd": ["sh", "-c", script], "WorkingDir": "/srv", "User": "app:app"}
    return image(layer_of(tiny_root), second_layer(), config={"config": inner})


def write_layout(folder: Path, *images: tuple[str, Made]) -> Path:
    (folder / "blobs/sha256").mkdir(parents=True)
    entries = []
    for name, made in images:
        for digest, data in {**made.blobs, made.digest: made.raw}.items():
            (folder / "blobs/sha256" / digest.partition(":")[2]).write_bytes(data)
        entries.append(made.entry(annotations={"org.opencontainers.image.ref.name": name}))
    (folder / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": entries}))
    return folder


def check(spec: dict[str, Any], rootfs: Path) -> None:
    assert violations(spec) == []
    assert spec["process"]["user"]["uid"] == 1000
    assert spec["process"]["cwd"] == "/srv"
    assert (rootfs / "srv/page").read_text() == "hello\n"
    assert not (rootfs / "data/seed").exists()
    assert (rootfs / "tmp").stat().st_mode & 0o7777 == 0o1700
    assert {path.name for path in rootfs.rglob(".wh.*")} == set()


def test_layout_and_store(
    made: Made, tmp_path: Path, place: Path, store: Store, engine: Engine
) -> None:
    folder = write_layout(tmp_path / "layout", (NAME, made))
    source = LayoutSource(folder, store)
    bundle = source.prepare(place / "a")
    check(bundle.spec, bundle.rootfs)
    # The bundle is a copy: what happens in it never reaches the store.
    (bundle.rootfs / "srv/page").write_text("changed\n")
    again = ImageSource(source.image(), store).prepare(place / "b")
    check(again.spec, again.rootfs)
    done = engine.run(again)
    assert (done.stdout.split(), done.stderr) == (["hello", "0", "1700"], "")
    (known,) = store.images()
    assert str(known.reference) == NAME
    for one in (bundle, again):
        one.remove(source.caller)


def test_layout_in_a_tar(made: Made, tmp_path: Path, place: Path, store: Store) -> None:
    folder = write_layout(tmp_path / "layout", ("1", made))
    with tarfile.open(tmp_path / "layout.tar", "w") as archive:
        archive.add(folder, "")
    bundle = LayoutSource(tmp_path / "layout.tar", store).prepare(place / "a")
    check(bundle.spec, bundle.rootfs)


def test_one_of_several(made: Made, tmp_path: Path, place: Path, store: Store) -> None:
    other = image(second_layer(), config={"config": {"Cmd": ["other"]}})
    folder = write_layout(tmp_path / "layout", (NAME, made), ("localhost/tests/tiny:2", other))
    with pytest.raises(UsageError, match="has 2 images") as caught:
        LayoutSource(folder, store).prepare(place / "a")
    assert NAME in caught.value.next_step
    with pytest.raises(UsageError, match="has no image '3'"):
        LayoutSource(folder, store, "3").prepare(place / "a")
    assert list(place.iterdir()) == []
    for name in ("2", "tiny:2", "localhost/tests/tiny:2"):
        assert LayoutSource(folder, store, name).image().config["config"]["Cmd"] == ["other"]


def test_sources_have_bounds(made: Made, tmp_path: Path, place: Path, store: Store) -> None:
    folder = write_layout(tmp_path / "layout", (NAME, made))
    with pytest.raises(InvalidImage, match="has 2 layers; at most 1 are taken"):
        LayoutSource(folder, store, bounds=Bounds(layers=1)).prepare(place / "a")
    assert store.images() == []


def test_damaged_layout(made: Made, tmp_path: Path, place: Path, store: Store) -> None:
    folder = write_layout(tmp_path / "layout", (NAME, made))
    largest = max((folder / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    with pytest.raises(InvalidImage):
        LayoutSource(folder, store).prepare(place / "a")
    assert list(place.iterdir()) == []
    assert store.images() == []


def test_docker_archive(made: Made, tmp_path: Path, place: Path, store: Store) -> None:
    skopeo = program("skopeo")
    folder = write_layout(tmp_path / "layout", ("1", made))
    archive = tmp_path / "saved.tar"
    command = [skopeo, "copy", "-q", f"oci:{folder}:1", f"docker-archive:{archive}:{NAME}"]
    subprocess.run(command, check=True)
    source = DockerArchiveSource(archive, store)
    bundle = source.prepare(place / "a")
    check(bundle.spec, bundle.rootfs)
    assert str(store.images()[0].reference) == NAME
    with pytest.raises(UsageError, match="has no image"):
        DockerArchiveSource(archive, store, "nothing").image()
    with pytest.raises(InvalidImage, match="lists 2 layers; at most 1 are taken"):
        DockerArchiveSource(archive, store, bounds=Bounds(layers=1)).image()

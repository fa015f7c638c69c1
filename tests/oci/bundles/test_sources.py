"""Every source of bundles: the same tree, whoever made it, and nothing left where it fails."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import stat
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import zstandard

from pytest_sandbox.errors import InvalidImage, UnknownUser, UsageError
from pytest_sandbox.oci.bundle import BundleOptions, ContainerBundle
from pytest_sandbox.oci.config import ImageConfig, parse_image_config
from pytest_sandbox.oci.sources import BootstrappedSource, DirectorySource, LayeredSource
from tests.oci.bundles.schema import violations

if TYPE_CHECKING:
    from pytest_sandbox.oci.supervisor.client import Supervisor

SHELL = ImageConfig(cmd=("sh",))


def tree_of(folder: Path, base: int = 0) -> dict[str, tuple[Any, ...]]:
    """Path -> what is there; ids relative to `base`."""
    found: dict[str, tuple[Any, ...]] = {}
    for at, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(at, name)
            status = path.lstat()
            content: Any = ""
            if path.is_symlink():
                content = os.fspath(path.readlink())
            elif stat.S_ISREG(status.st_mode):
                content = hashlib.sha256(path.read_bytes()).hexdigest()
            xattrs = {x: os.getxattr(path, x, follow_symlinks=False) for x in _xattrs(path)}
            ids = (status.st_uid - base, status.st_gid - base)
            linked = status.st_nlink if stat.S_ISREG(status.st_mode) else 0
            known = (oct(status.st_mode), ids, status.st_mtime_ns, linked, content, xattrs)
            found[str(path.relative_to(folder))] = known
    return found


def _xattrs(path: Path) -> list[str]:
    return [x for x in os.listxattr(path, follow_symlinks=False) if x.startswith("user.")]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


ADDED = {"etc/hosts", "etc/hostname", "etc/resolv.conf"}
"""Mount points of the engine's files."""


@pytest.fixture
def odd_root(tiny_root: Path) -> Path:
    """The tiny root with one of each kind in it."""
    root = tiny_root
    (root / "twin").hardlink_to(root / "data/seed")
    (root / "setuid").write_text("x")
    (root / "setuid").chmod(0o4755)
    (root / "dangling").symlink_to("/nowhere/else")
    (root / "name with ü\n").write_text("")
    os.mkfifo(root / "fifo")
    (root / ".wh.kept").write_text("no whiteout\n")
    os.setxattr(root / "setuid", "user.note", b"\x00\xff!")
    if os.geteuid() == 0:
        os.chown(root / "data", 1000, 44)
    os.utime(root / "setuid", ns=(0, 1_234_567_890_123_456_789))
    os.utime(root / "data", ns=(0, -1_500_000_000))
    return root


def tar_of(root: Path) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.add(root, "./")
    return out.getvalue()


def test_directory(odd_root: Path, place: Path, supervisor: Supervisor) -> None:
    bundle = DirectorySource(odd_root, supervisor, SHELL).prepare(place / "b")
    made = tree_of(bundle.rootfs, supervisor.ids.root[0])
    assert made.keys() >= ADDED
    assert {k: v for k, v in made.items() if k not in ADDED} == tree_of(odd_root, os.geteuid())
    assert violations(bundle.spec) == []
    assert bundle.spec["root"]["path"] == "rootfs"
    assert ContainerBundle.open(place / "b") == bundle
    bundle.remove(supervisor)
    assert not bundle.path.exists()


def test_directory_is_none(tmp_path: Path, place: Path, supervisor: Supervisor) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "gone"):
        with pytest.raises(UsageError, match="is no folder"):
            DirectorySource(folder, supervisor, SHELL).prepare(place / "b")
    assert not (place / "b").exists()


@pytest.mark.parametrize("packed", ["plain", "gzip", "zstd"])
def test_bootstrapped(
    odd_root: Path, tmp_path: Path, place: Path, supervisor: Supervisor, packed: str
) -> None:
    plain = tar_of(odd_root)
    pack = {"plain": bytes, "gzip": gzip.compress, "zstd": zstandard.ZstdCompressor().compress}
    (tmp_path / "base.tar").write_bytes(pack[packed](plain))
    digest = hashlib.sha256(plain).hexdigest()
    source = BootstrappedSource(tmp_path / "base.tar", supervisor, digest, SHELL)
    made = tree_of(source.prepare(place / "b").rootfs, supervisor.ids.root[0])
    assert made.keys() - ADDED == tree_of(odd_root).keys()
    assert made[".wh.kept"][4] == hashlib.sha256(b"no whiteout\n").hexdigest()
    assert made["setuid"][0] == "0o104755"
    wrong = BootstrappedSource(tmp_path / "base.tar", supervisor, "0" * 64, SHELL)
    with pytest.raises(InvalidImage, match=r"base base\.tar has the digest"):
        wrong.prepare(place / "c")
    assert not (place / "c").exists()


def test_application_layer(
    tiny_root: Path, tmp_path: Path, place: Path, supervisor: Supervisor
) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, text in (("app/run", "go"), ("data/.wh.seed", ""), ("new", "n")):
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    (tmp_path / "layer.tgz").write_bytes(out.getvalue())
    run_image = {
        "config": {
            "Env": ["A=1", "B=2"],
            "Entrypoint": ["/old"],
            "Cmd": ["x"],
            "Labels": {"of": "base"},
        }
    }
    base = DirectorySource(tiny_root, supervisor, parse_image_config(run_image))
    source = LayeredSource(
        base,
        tmp_path / "layer.tgz",
        env={"B": "3", "C": "4"},
        entrypoint=["/app/run"],
        working_dir="/app",
        user="app",
        labels={"by": "me"},
    )
    bundle = source.prepare(place / "b")
    assert (bundle.rootfs / "app/run").read_text() == "go"
    assert not (bundle.rootfs / "data/seed").exists()
    process = bundle.spec["process"]
    assert process["args"] == ["/app/run"]
    assert process["cwd"] == "/app"
    assert process["user"]["uid"] == 1000
    assert process["env"][1:] == ["A=1", "B=3", "C=4", "HOME=/home/app"]
    assert {"of": "base", "by": "me"}.items() <= bundle.spec["annotations"].items()
    wrong = LayeredSource(base, tmp_path / "layer.tgz", diff_id=f"sha256:{'0' * 64}", cmd=["x"])
    with pytest.raises(InvalidImage, match="digest"):
        wrong.prepare(place / "c")
    assert list(place.iterdir()) == [bundle.path]


def test_application_folder(
    tiny_root: Path, tmp_path: Path, place: Path, supervisor: Supervisor
) -> None:
    app = tmp_path / "app"
    (app / "lib").mkdir(parents=True)
    (app / "run").write_text("go")
    (app / ".wh.kept").write_text("")
    base = DirectorySource(tiny_root, supervisor, ImageConfig(cmd=("sh",)))
    lower = LayeredSource(base, app, prefix="/srv/one", cmd=["x", "y"])
    bundle = LayeredSource(lower, app, prefix="/srv/two").prepare(place / "b")
    for name in ("one", "two"):
        assert names(bundle.rootfs / "srv" / name) == {".wh.kept", "lib", "run"}
    assert bundle.spec["process"]["args"] == ["x", "y"]
    assert (bundle.rootfs / "data/seed").exists()


def test_nothing_is_left_where_it_fails(
    tiny_root: Path, place: Path, supervisor: Supervisor
) -> None:
    options = BundleOptions(user="stranger")
    source = DirectorySource(tiny_root, supervisor, SHELL, options)
    with pytest.raises(UnknownUser, match="'stranger'"):
        source.prepare(place / "b")
    assert list(place.iterdir()) == []


def test_only_into_empty_folders(tiny_root: Path, place: Path, supervisor: Supervisor) -> None:
    (place / "full").mkdir()
    (place / "full/mine").touch()
    source = DirectorySource(tiny_root, supervisor, SHELL)
    with pytest.raises(UsageError, match="not an empty folder"):
        source.prepare(place / "full")
    assert (place / "full/mine").exists()
    (place / "empty").mkdir()
    bundle = source.prepare(place / "empty")
    with pytest.raises(UsageError, match="not an empty folder"):
        source.prepare(place / "empty")
    assert bundle.spec["process"]["args"] == ["sh"]


def test_bundles_by_hand(tiny_root: Path, place: Path) -> None:
    spec = {"ociVersion": "1.0.2", "root": {"readonly": True}}
    made = ContainerBundle.create(place / "b", tiny_root, spec)
    assert made.spec["root"] == {"path": str(tiny_root), "readonly": True}
    assert made.rootfs == tiny_root
    assert names(made.path) == {"config.json"}
    with pytest.raises(UsageError, match="is a bundle already"):
        ContainerBundle.create(place / "b", tiny_root, spec)
    with pytest.raises(UsageError, match="no folder"):
        ContainerBundle.create(place / "c", place / "gone", spec)
    with pytest.raises(UsageError, match="is no bundle"):
        ContainerBundle.open(place)

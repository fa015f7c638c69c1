"""OCI layouts and archives of docker save: in, out, and to other tools and back."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import tarfile

import pytest

from pytest_sandbox.errors import ImageUnavailable, InvalidImage, UsageError
from pytest_sandbox.oci.exporting import export_image
from pytest_sandbox.oci.importing import import_images
from pytest_sandbox.oci.reference import parse_reference
from tests.oci.requiring import program
from tests.oci.store.making import BASE, SECOND, THIRD, Made, sha, tar
from tests.oci.store.seeing import diffs, left_over, listing

NAME = parse_reference("example.org/some/app:1")
MADE = Made(BASE, SECOND, THIRD)


def put_tar(path, files):
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def docker_archive(path, *, tags=("app:1",), broken=b"", extra=()):
    """An archive as docker save (20.10) writes it, with a link to a layer that is there twice."""
    files = {
        "aa/layer.tar": BASE,
        "bb/layer.tar": "../aa/layer.tar",
        "cc/layer.tar": SECOND + broken,
        "cfg.json": Made(BASE, BASE, SECOND).config,
    }
    listed = {
        "Config": "cfg.json",
        "RepoTags": list(tags),
        "Layers": ["aa/layer.tar", "bb/layer.tar", "cc/layer.tar"],
    }
    files["manifest.json"] = json.dumps([listed, *extra]).encode()
    return put_tar(path, files)


def check_tree(store, image):
    first, second, third = diffs(store, image)
    assert first["etc/name"] == b"base"
    assert second["etc/name"] == "whiteout"
    assert second["etc/other"] == b"second"
    assert third["bin/sh"] == b"third"
    assert third["new/link"] == "-> ../bin/sh"
    assert "etc" not in third


def test_layout_in(store, tmp_path):
    (image,) = import_images(store, MADE.layout(tmp_path / "layout"), NAME)
    check_tree(store, image)
    assert image.digest == MADE.digest
    assert image.raw == MADE.config
    assert image.labels == {"made": "for tests"}
    assert image.created == 1714979289
    assert [layer.diff_id for layer in image.layers] == MADE.diff_ids
    assert store.image(NAME, image.platform).digest == MADE.digest
    assert left_over(store) == {}


@pytest.mark.parametrize("form", ["oci", "oci-archive"])
def test_layout_out_and_in_again_is_the_same_image(store, supervisor, tmp_path, form):
    (image,) = import_images(store, MADE.layout(tmp_path / "layout"), NAME)
    target = tmp_path / "out"
    export_image(store, image, target, form)
    assert listing(tmp_path) == ["layout", "out", "store"]
    other = type(store)(tmp_path / "other-store", supervisor)
    (again,) = import_images(other, target)  # the name is in the layout
    assert (again.reference, again.digest, again.keys) == (NAME, image.digest, image.keys)
    check_tree(other, again)


def test_skopeo_and_umoci_read_our_layout(store, tmp_path):
    for tool in ("skopeo", "umoci"):
        program(tool)
    (image,) = import_images(store, MADE.layout(tmp_path / "layout"), NAME)
    export_image(store, image, tmp_path / "out", "oci")
    done = subprocess.run(
        ["skopeo", "inspect", f"oci:{tmp_path}/out:1"], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["Digest"] == MADE.digest
    rootless = [] if os.geteuid() == 0 else ["--rootless"]
    subprocess.run(
        ["umoci", "unpack", *rootless, "--image", f"{tmp_path}/out:1", f"{tmp_path}/bundle"],
        check=True,
        capture_output=True,
    )
    root = tmp_path / "bundle" / "rootfs"
    assert (root / "bin/sh").read_bytes() == b"third"
    assert not (root / "etc/name").exists()
    export_image(store, image, tmp_path / "out.tar", "docker-archive")
    done = subprocess.run(
        ["skopeo", "inspect", "--config", f"docker-archive:{tmp_path}/out.tar"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["rootfs"]["diff_ids"] == MADE.diff_ids


def test_docker_archive_in_and_out(store, supervisor, tmp_path):
    source = docker_archive(tmp_path / "saved.tar", tags=("app:1", "example.org/app:2"))
    first, second = import_images(store, source)
    assert [str(first.reference), str(second.reference)] == [
        "docker.io/library/app:1",
        "example.org/app:2",
    ]
    below, same, above = diffs(store, first)
    assert below["etc/name"] == b"base"
    assert "etc/name" not in same or same["etc/name"] == b"base"
    assert above["etc/name"] == "whiteout"
    export_image(store, first, tmp_path / "out.tar", "docker-archive")
    with tarfile.open(tmp_path / "out.tar") as archive:
        (listed,) = json.load(archive.extractfile("manifest.json"))
        assert listed["RepoTags"] == ["app:1"]
        layers = [archive.extractfile(name).read() for name in listed["Layers"]]
        config = archive.extractfile(listed["Config"]).read()
    assert layers == [BASE, BASE, SECOND]
    assert sha(config) == "sha256:" + listed["Config"].removesuffix(".json")
    other = type(store)(tmp_path / "other-store", supervisor)
    (again,) = import_images(other, tmp_path / "out.tar")
    assert again.keys == first.keys


def test_packed_docker_archive(store, tmp_path):
    docker_archive(tmp_path / "saved.tar")
    packed = tmp_path / "saved.tar.gz"
    packed.write_bytes(gzip.compress((tmp_path / "saved.tar").read_bytes()))
    (image,) = import_images(store, packed)
    assert len(image.layers) == 3


def test_an_archive_becomes_a_layout_with_packed_layers(store, tmp_path):
    (image,) = import_images(store, docker_archive(tmp_path / "saved.tar"))
    assert image.digest == ""
    done = export_image(store, image, tmp_path / "out", "oci")
    assert done.digest
    again = export_image(store, image, tmp_path / "again", "oci")
    assert again.digest == done.digest
    manifest = json.loads((tmp_path / "out/blobs/sha256" / done.digest[7:]).read_bytes())
    for layer, plain in zip(manifest["layers"], (BASE, BASE, SECOND), strict=True):
        assert layer["mediaType"].endswith("tar+gzip")
        data = (tmp_path / "out/blobs/sha256" / layer["digest"][7:]).read_bytes()
        assert gzip.decompress(data) == plain
    assert store.image(image.reference, image.platform).digest == done.digest


BAD_LAYOUTS = {
    "a wrong digest": (lambda f: damage(f, MADE.manifest, b"x"), "has"),
    "a damaged layer": (
        lambda f: damage(f, MADE.packed[1], b""),
        "bytes, not|has the digest|content",
    ),
    "another version": (
        lambda f: (f / "oci-layout").write_text('{"imageLayoutVersion": "2"}'),
        "version '2'",
    ),
    "a blob that is a link": (lambda f: link(f, MADE.config), "no file|cannot"),
    "no index": (lambda f: (f / "index.json").write_text("[]"), "not an object"),
}


def damage(folder, data, extra):
    (folder / "blobs/sha256" / sha(data)[7:]).write_bytes(b"X" + data[1:] + extra)


def link(folder, data):
    file = folder / "blobs/sha256" / sha(data)[7:]
    file.rename(folder.parent / "elsewhere")
    file.symlink_to(folder.parent / "elsewhere")


@pytest.mark.parametrize("case", BAD_LAYOUTS)
def test_bad_layouts_leave_nothing(store, tmp_path, case):
    folder = MADE.layout(tmp_path / "layout")
    change, problem = BAD_LAYOUTS[case]
    change(folder)
    with pytest.raises(InvalidImage, match=problem):
        import_images(store, folder, NAME)
    assert store.images() == []
    assert left_over(store) == {}
    good = MADE.layout(tmp_path / "good")
    (image,) = import_images(store, good, NAME)
    check_tree(store, image)


def test_bad_archives_leave_nothing(store, tmp_path):
    with pytest.raises(InvalidImage, match="digest"):
        import_images(store, docker_archive(tmp_path / "a.tar", broken=b"\0" * 512))
    with pytest.raises(InvalidImage, match="neither"):
        import_images(store, put_tar(tmp_path / "b.tar", {"x": b"y"}), NAME)
    with pytest.raises(InvalidImage, match="without Config"):
        import_images(store, docker_archive(tmp_path / "c.tar", extra=[{}]), NAME)
    missing = put_tar(
        tmp_path / "d.tar",
        {
            "manifest.json": b'[{"Config": "c", "Layers": ["../../../etc/passwd"]}]',
            "c": Made(BASE).config,
        },
    )
    with pytest.raises(InvalidImage, match="has no file"):
        import_images(store, missing, NAME)
    (tmp_path / "e.tar").write_bytes(b"not a tar at all" * 100)
    with pytest.raises(InvalidImage):
        import_images(store, tmp_path / "e.tar", NAME)
    assert store.images() == []
    assert left_over(store) == {}


def test_names_are_asked_for_where_there_are_none(store, tmp_path):
    folder = MADE.layout(tmp_path / "layout", name="v1")
    with pytest.raises(UsageError, match="calls an image v1"):
        import_images(store, folder)
    with pytest.raises(UsageError, match="cannot be read"):
        import_images(store, tmp_path / "none")
    with pytest.raises(UsageError, match="without a name"):
        import_images(store, docker_archive(tmp_path / "a.tar", tags=()))
    index = json.loads((folder / "index.json").read_text())
    second = {**index["manifests"][0], "annotations": {"org.opencontainers.image.ref.name": "v2"}}
    index["manifests"].append(second)
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(UsageError, match="has 2 images"):
        import_images(store, folder, NAME)
    (image,) = import_images(store, folder, parse_reference("example.org/app:v2"))
    assert image.digest == MADE.digest


def test_a_name_with_a_digest_is_that_image(store, tmp_path):
    folder = MADE.layout(tmp_path / "layout")
    with pytest.raises(InvalidImage, match="what comes under this name is sha256:"):
        import_images(store, folder, parse_reference(f"example.org/app@sha256:{'0' * 64}"))
    archive = docker_archive(tmp_path / "a.tar")
    with pytest.raises(InvalidImage, match="without one"):
        import_images(store, archive, parse_reference(f"example.org/app@{MADE.digest}"))
    assert store.images() == []
    (image,) = import_images(store, folder, parse_reference(f"example.org/app@{MADE.digest}"))
    assert image.digest == MADE.digest


def test_archives_are_kept_of_layers_that_were_unpacked_from_others(store, tmp_path):
    import_images(store, docker_archive(tmp_path / "a.tar", tags=("plain:1",)))
    again = Made(BASE, BASE, SECOND)  # the same layers, packed
    (image,) = import_images(store, again.layout(tmp_path / "layout"), NAME)
    export_image(store, image, tmp_path / "out.tar", form="oci")
    assert all(store.blobs.has(layer.blob.digest) for layer in image.layers)


def test_exports_do_not_overwrite_folders(store, tmp_path):
    (image,) = import_images(store, MADE.layout(tmp_path / "layout"), NAME)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    with pytest.raises(UsageError, match="there already"):
        export_image(store, image, tmp_path / "full", "oci")
    with pytest.raises(UsageError, match="is a folder"):
        export_image(store, image, tmp_path / "full", "docker-archive")
    with pytest.raises(UsageError, match="cannot be written"):
        export_image(store, image, tmp_path / "none" / "x", "oci-archive")
    assert listing(tmp_path / "full") == ["mine"]
    store.blobs.remove(image.layers[1].blob.digest)
    with pytest.raises(ImageUnavailable, match="archive of layer 2"):
        export_image(store, image, tmp_path / "x", "oci")
    assert not (tmp_path / "x").exists()


def test_a_layer_with_odd_names_is_no_path(store, tmp_path):
    layer = tar(("back\\slash", b"1"), ("-> not a link", b"2"), ("/absolute", b"3"))
    (image,) = import_images(store, Made(layer).layout(tmp_path / "layout"), NAME)
    (found,) = diffs(store, image)
    assert found == {"back\\slash": b"1", "-> not a link": b"2", "absolute": b"3"}

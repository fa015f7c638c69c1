"""`image verify` finds what was changed behind the store's back, and a pull mends it."""

from __future__ import annotations

import os

import pytest

from pytest_sandbox.oci.importing import import_images
from pytest_sandbox.oci.local_images import complete, put_image
from pytest_sandbox.oci.reference import parse_reference
from pytest_sandbox.oci.store.verify import verify
from tests.oci.store.making import BASE, SECOND, THIRD, Made
from tests.oci.store.seeing import diffs

NAME = parse_reference("example.org/app:1")
MADE = Made(BASE, SECOND, THIRD)


@pytest.fixture
def image(store, tmp_path):
    (found,) = import_images(store, MADE.layout(tmp_path / "layout"), NAME)
    return found


def test_all_is_well(store, image):
    found = verify(store, [image])
    assert found.damage == found.unproved == ()
    assert (found.blobs, found.layers) == (5, 3)


CHANGES = {
    "content": lambda diff: (diff / "bin/sh").write_bytes(b"THIRD"),
    "a new file": lambda diff: (diff / "new/x").write_bytes(b"x"),
    "a lost file": lambda diff: (diff / "bin/sh").unlink(),
    "a mode": lambda diff: (diff / "bin/sh").chmod(0o4755),
    "a time": lambda diff: os.utime(diff / "bin/sh", (1, 1)),
    "a link": lambda diff: relink(diff / "new/link"),
}


def relink(path):
    path.unlink()
    path.symlink_to("/etc/passwd")


@pytest.mark.skipif(os.geteuid() != 0, reason="the files belong to the sandboxes' root")
@pytest.mark.parametrize("change", CHANGES)
def test_changed_files_are_found_and_mended(store, image, tmp_path, change):
    CHANGES[change](store.layer(image.keys[2]).diff)
    found = verify(store, [image])
    assert found.damage == ("example.org/app:1, layer 3: its files are not those of its archive",)
    assert store.image(NAME, image.platform) is None
    (again,) = import_images(store, tmp_path / "layout", NAME)
    assert verify(store, [again]).damage == ()
    assert diffs(store, again)[2]["bin/sh"] == b"third"


def test_damaged_blobs_are_found_and_removed(store, image):
    digest = image.layers[1].blob.digest
    file = store.blobs.path(digest)
    file.chmod(0o600)
    file.write_bytes(b"X" + file.read_bytes()[1:])
    (problem,) = verify(store, [image]).damage
    assert problem.startswith(f"example.org/app:1, layer 2: the blob {digest} has the content of")
    assert not store.blobs.has(digest)
    again = verify(store, [image])
    assert again.damage == ()
    assert again.unproved == ("example.org/app:1, layer 2",)


def test_a_layer_made_here_gives_the_same_archive_again(store, image, tmp_path):
    upper = tmp_path / "store" / "sandboxes" / "upper"
    upper.mkdir()
    (upper / "file").write_text("mine")
    store.adopt_layer(upper, image.keys[-1], "snap-1234")
    made = put_image(
        store,
        parse_reference("example.org/made:1"),
        image.platform,
        {"config": {}},
        [*image.layers, "snap-1234"],
    )
    assert verify(store, [made]).unproved == ("example.org/made:1, layer 4",)
    made = complete(store, made)
    assert verify(store, [made]).damage == verify(store, [made]).unproved == ()
    (store.layer("snap-1234").diff / "file").write_text("theirs")
    (problem,) = verify(store, [made]).damage
    assert "its files make sha256:" in problem

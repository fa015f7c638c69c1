"""Pulling into the store: what is asked of the registry, what is verified, what is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pytest_sandbox.errors import ImageUnavailable, InvalidImage, RegistryError
from pytest_sandbox.oci.exporting import export_image
from pytest_sandbox.oci.importing import import_images
from pytest_sandbox.oci.layout import stored_manifest
from pytest_sandbox.oci.pull import pull
from pytest_sandbox.oci.push import push_image
from pytest_sandbox.oci.reference import parse_reference
from pytest_sandbox.oci.store import Store
from pytest_sandbox.oci.store.verify import verify
from pytest_sandbox.oci.supervisor import Supervisor
from tests.oci.registry.scripted import cut, stall, status
from tests.oci.requiring import fuse_overlayfs
from tests.oci.store.making import BASE, SECOND, THIRD, Made, tar
from tests.oci.store.seeing import diffs, left_over, listing

ROOT = Path(__file__).parents[3]
NOISE = os.urandom(3 << 20)
BIG = tar(("big", NOISE))
APP = Made(BASE, SECOND, THIRD)


def name_of(server, tag="1"):
    return parse_reference(f"{server.host}/some/app:{tag}")


def puller(store, reference, *more):
    words = [sys.executable, "-m", "tests.oci.store.puller", str(store.root), str(reference), *more]
    return subprocess.Popen(
        words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def check(store, image):
    """The image is whole: what APP holds, verified."""
    assert image.digest == APP.digest
    base, second, third = diffs(store, image)
    assert base["etc/name"] == b"base"
    assert second["etc/name"] == "whiteout"
    assert third["bin/sh"] == b"third"
    assert verify(store, [image]).damage == ()
    assert left_over(store) == {}


def test_pull_and_again_without_a_single_request(store, server, client):
    server.add("some/app", "1", APP)
    image = pull(name_of(server), store=store, registry=client)
    check(store, image)
    assert image.index == APP.digest
    before = len(server.log)
    again = pull(name_of(server), store=store, registry=client)
    never = pull(name_of(server), store=store, registry=client, policy="never")
    assert (again.digest, never.digest) == (APP.digest, APP.digest)
    assert len(server.log) == before
    by_digest = parse_reference(f"{server.host}/some/app@{APP.digest}")
    assert pull(by_digest, store=store, registry=client).digest == APP.digest
    assert len(server.log) == before
    pull(name_of(server), store=store, registry=client, policy="always")
    assert [str(request) for request in server.log[before:]] == ["HEAD /v2/some/app/manifests/1"]


def test_never_says_how_to_get_it(store, server, client):
    with pytest.raises(ImageUnavailable, match="not to be pulled") as caught:
        pull(name_of(server), store=store, registry=client, policy="never")
    assert "image pull" in caught.value.next_step
    assert server.log == []


def test_real_registry_there_and_back(store, supervisor, registry, client, tmp_path):
    name = parse_reference(f"{registry.host}/made/app:1")
    (image,) = import_images(store, APP.layout(tmp_path / "layout"), name)
    manifest = stored_manifest(store, image)
    digest = push_image(client, name, manifest, lambda blob: store.blobs.open(blob.digest))
    assert digest == APP.digest
    other = Store(tmp_path / "other-store", supervisor)
    pulled = pull(name, store=other, registry=client)
    check(other, pulled)
    assert pulled.keys == image.keys


def test_layers_that_are_there_are_not_fetched_again(store, server, client):
    server.add("some/app", "1", APP)
    server.add("some/app", "2", Made(BASE, SECOND, tar(("other", b"other"))))
    first = pull(name_of(server), store=store, registry=client)
    before = len(server.requests("blobs"))
    second = pull(name_of(server, "2"), store=store, registry=client)
    assert second.keys[:2] == first.keys[:2]
    assert len(server.requests("blobs")) == before + 2  # the config, the third layer


def test_a_cut_download_goes_on_where_it_was(store, server, client):
    made = Made(BASE, BIG)
    server.add("some/app", "1", made)
    digest = list(made.blobs)[-1]
    server.on(f"GET .*{digest}", cut(1_000_000), cut(500_000))
    image = pull(name_of(server), store=store, registry=client)
    assert diffs(store, image)[1]["big"] == NOISE
    ranges = [request.headers.get("Range") for request in server.requests(f"GET .*{digest}")]
    assert ranges == [None, "bytes=1000000-", "bytes=1500000-"]
    assert left_over(store) == {}


def test_a_download_that_begins_anew_is_unpacked_anew(store, server, client):
    made = Made(BASE, BIG)
    server.add("some/app", "1", made)
    server.etag = ""  # nothing to go on from
    server.on(f"GET .*{list(made.blobs)[-1]}", cut(2_000_000))
    image = pull(name_of(server), store=store, registry=client)
    assert diffs(store, image)[1]["big"] == NOISE
    assert verify(store, [image]).damage == ()


def broken(data):
    return data[:-20] + b"X" + data[-19:]


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_damaged_layers_are_said_to_be_that_and_leave_nothing(store, server, client, layer):
    server.add("some/app", "1", APP)
    digest = list(APP.blobs)[2 + layer]
    server.blobs[digest] = broken(server.blobs[digest])
    with pytest.raises(InvalidImage, match=f"not {digest}"):
        pull(name_of(server), store=store, registry=client)
    assert store.images() == []
    assert not store.blobs.has(digest)
    assert left_over(store) == {}
    server.add("some/app", "1", APP)
    check(store, pull(name_of(server), store=store, registry=client))


def test_a_wrong_diff_id_is_refused(store, server, client):
    wrong = Made(BASE, SECOND)
    listed = {"rootfs": {"type": "layers", "diff_ids": [wrong.diff_ids[0], APP.diff_ids[2]]}}
    server.add("some/app", "1", Made(BASE, SECOND, **listed))
    with pytest.raises(InvalidImage, match="layer 2: its unpacked content has the digest"):
        pull(name_of(server), store=store, registry=client)
    assert store.images() == []
    assert left_over(store) == {}


def test_a_lost_blob_is_the_registrys_fault(store, server, client):
    server.add("some/app", "1", APP)
    server.on(f"GET .*{list(APP.blobs)[3]}", status(404), status(404), status(404), status(404))
    with pytest.raises(RegistryError, match="404"):
        pull(name_of(server), store=store, registry=client)
    assert store.images() == []
    assert left_over(store) == {}


def test_layers_come_side_by_side(store, server, client):
    server.add("some/app", "1", APP)
    first, second, third = list(APP.blobs)[2:]
    others = threading.Barrier(3, timeout=20)

    def together(handler):
        others.wait()
        handler.usual()

    for digest in (first, second, third):
        server.on(f"GET .*{digest}", together)
    check(store, pull(name_of(server), store=store, registry=client))


def test_the_same_layer_twice(store, server, client):
    server.add("some/app", "1", Made(BASE, SECOND, SECOND, BASE))
    image = pull(name_of(server), store=store, registry=client)
    assert len(set(image.keys)) == 4
    assert diffs(store, image)[3]["etc/name"] == b"base"
    assert verify(store, [image]).damage == ()


def test_without_archives_and_with_them_later(store, server, client, tmp_path):
    server.add("some/app", "1", APP)
    image = pull(name_of(server), store=store, registry=client, keep_blobs=False)
    assert len(store.blobs.all()) == 2  # manifest and config
    with pytest.raises(ImageUnavailable, match="archive of layer 1"):
        export_image(store, image, tmp_path / "out")
    inodes = [store.layer(key).diff.stat().st_ino for key in image.keys]
    again = pull(name_of(server), store=store, registry=client, policy="always")
    assert [store.layer(key).diff.stat().st_ino for key in again.keys] == inodes
    export_image(store, again, tmp_path / "out")
    check(store, again)


def test_a_tag_that_moved(store, server, client):
    server.add("some/app", "1", Made(BASE))
    old = pull(name_of(server), store=store, registry=client)
    server.add("some/app", "1", APP)
    assert pull(name_of(server), store=store, registry=client).digest == old.digest
    new = pull(name_of(server), store=store, registry=client, policy="always")
    check(store, new)
    assert [image.digest for image in store.images()] == [APP.digest]


def test_many_processes_fetch_and_unpack_once(store, server):
    made = Made(BASE, BIG, SECOND)
    server.add("some/app", "1", made)
    running = [puller(store, name_of(server)) for _ in range(6)]
    for process in running:
        out, err = process.communicate(timeout=120)
        assert (process.returncode, out.strip(), err) == (0, made.digest, "")
    for digest in made.blobs:
        assert len(server.requests(f"GET .*/(blobs|manifests)/{digest}")) <= 1
    assert len(server.requests("GET .*/manifests/1$")) == 1
    assert len(listing(store.root / "layers")) == 3
    assert left_over(store) == {}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_killed_in_mid_pull(store, server, client, number):
    made = Made(BASE, BIG, SECOND)
    server.add("some/app", "1", made)
    big = list(made.blobs)[3]
    server.on(f"GET .*{big}", stall(2_000_000))
    process = puller(store, name_of(server))
    deadline = time.monotonic() + 30
    while not server.requests(f"GET .*{big}") or not listing(store.root / "layers"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(number)
    began = time.monotonic()
    process.communicate(timeout=30)
    assert process.returncode != 0
    assert time.monotonic() - began < 10
    assert store.images() == []
    if number == signal.SIGINT:
        assert left_over(store) == {}
    else:
        assert left_over(store) != {}
    image = pull(name_of(server), store=store, registry=client)
    assert diffs(store, image)[1]["big"] == NOISE
    assert verify(store, [image]).damage == ()
    assert left_over(store) == {}
    assert len(server.requests(f"GET .*{list(made.blobs)[2]}")) == 1  # it was there already


def test_layers_of_another_boot_are_unpacked_again_from_their_archives(store, server, client):
    server.add("some/app", "1", APP)
    image = pull(name_of(server), store=store, registry=client)
    for key in image.keys:
        file = store.layer(key).folder / "layer.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "boot": "before"}))
    torn = store.layers.folder(image.keys[1]) / "diff" / "etc" / "other"
    torn.write_bytes(b"")  # what a crash of the machine may leave
    assert store.image(image.reference, image.platform) is None
    before = len(server.requests("GET .*/blobs/"))
    again = pull(name_of(server), store=store, registry=client)
    assert len(server.requests("GET .*/blobs/")) == before  # nothing is asked for
    check(store, again)
    key = image.keys[0]
    file = store.layer(key).folder / "layer.json"
    known = {**json.loads(file.read_text()), "boot": "before", "synced": True}
    file.write_text(json.dumps(known))
    assert store.layer(key).key == key


def test_an_old_layer_is_noted_as_written_to_the_disk(store, server, client):
    server.add("some/app", "1", Made(BASE))
    image = pull(name_of(server), store=store, registry=client)
    layer = store.layer(image.keys[0])
    assert not layer.synced
    store.layers.note(layer, created=time.time() - 120)
    store.layer(layer.key)
    deadline = time.monotonic() + 20
    while not store.layers.record(layer.key).synced:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can choose its ids")
def test_layers_of_another_id_map_are_not_reused(store, supervisor, server, client, tmp_path):
    server.add("some/app", "1", APP)
    image = pull(name_of(server), store=store, registry=client)
    moved = [
        tuple(entry._replace(outside=entry.outside + 65536) for entry in ranges)
        for ranges in (supervisor.ids.uids, supervisor.ids.gids)
    ]
    other = Supervisor(supervisor.ids._replace(uids=moved[0], gids=moved[1]))
    try:
        theirs = Store(store.root, other)
        assert theirs.image(image.reference, image.platform) is None
        again = pull(name_of(server), store=theirs, registry=client)
        owner = theirs.layer(again.keys[0]).diff.joinpath("bin/sh").stat().st_uid
        assert owner == moved[0][0].outside
        assert store.image(image.reference, image.platform) is None
        check(theirs, again)
    finally:
        other.close()


@pytest.mark.parametrize("snapshotter", ["copy", "fuse-overlayfs"])
def test_layers_for_other_snapshotters(supervisor, server, client, tmp_path, snapshotter):
    if snapshotter == "fuse-overlayfs":
        fuse_overlayfs()
    server.add("some/app", "1", APP)
    other = Store(tmp_path / "other-store", supervisor, snapshotter)
    image = pull(name_of(server), store=other, registry=client)
    base, second, third = diffs(other, image)
    if snapshotter == "copy":
        assert set(third) == (set(base) | {"etc/other", "new", "new/link"}) - {"etc/name"}
        assert third["bin/sh"] == b"third"
        assert third["etc/other"] == b"second"
    else:
        assert second["etc/name"] == "whiteout"
    assert {other.layer(key).flavour for key in image.keys} == {other.snapshotter.flavour}
    assert left_over(other) == {}
    if snapshotter == "copy":
        assert Store(other.root, supervisor).image(image.reference, image.platform) is None


def test_nobody_else_gets_into_the_store(store):
    assert store.root.stat().st_mode & 0o7777 == 0o700
    store.root.chmod(0o755)
    Store(store.root, store.caller)
    assert store.root.stat().st_mode & 0o7777 == 0o700

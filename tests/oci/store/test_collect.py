"""Mark and sweep: what is pinned, in use or recent stays, all else goes; killed anywhere, it is
finished by the next one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pytest_sandbox.errors import ImageUnavailable
from pytest_sandbox.oci.importing import import_images
from pytest_sandbox.oci.local_images import put_image
from pytest_sandbox.oci.reference import parse_reference
from pytest_sandbox.oci.store import owner_of
from pytest_sandbox.oci.store.verify import verify
from tests.oci.registry.scripted import Scripted
from tests.oci.store.making import BASE, SECOND, THIRD, Made, tar
from tests.oci.store.seeing import left_over, listing

ROOT = Path(__file__).parents[3]
DAY = 86400.0


@pytest.fixture
def add(store, tmp_path):
    """Imports images that share the layer BASE."""

    def add(name, *more, age=0.0):
        folder = Made(BASE, *more).layout(tmp_path / f"layout-{name}")
        (image,) = import_images(store, folder, parse_reference(f"example.org/{name}:1"))
        set_age(store, image, age)
        return image

    return add


def set_age(store, image, age):
    when = time.time() - age
    for file in (store.root / "images").iterdir():
        if str(image.reference) in file.read_text():
            os.utime(file, (when, when))
    for key in image.keys:
        os.utime(store.layers.folder(key) / "layer.json", (when, when))
    for digest in (image.digest, image.config_digest, *(la.blob.digest for la in image.layers)):
        os.utime(store.blobs.path(digest), (when, when))


def names(images):
    return sorted(image.reference.familiar.removeprefix("example.org/") for image in images)


def check_whole(store):
    """Every image that is recorded is all there."""
    found = verify(store, store.images())
    assert found.damage == found.unproved == ()


def test_pinned_active_and_recent_stay(store, add):
    pinned = add("pinned", tar(("pinned", b"1")), age=30 * DAY)
    active = add("active", tar(("active", b"1")), age=30 * DAY)
    add("recent", tar(("recent", b"1")), age=2 * DAY)
    old = add("old", tar(("old", b"1")), age=30 * DAY)
    add("dead", tar(("dead", b"1")), age=30 * DAY)
    store.pin(pinned.reference)
    store.use_layers("running", active.keys)
    child = subprocess.Popen(["sleep", "60"])
    store.use_layers("killed", store.images()[1].keys, owner_of(child.pid))
    child.kill()
    child.wait()
    done = store.collect(older_than=7 * DAY)
    assert names(done.images) == ["dead:1", "old:1"]
    assert names(store.images()) == ["active:1", "pinned:1", "recent:1"]
    assert old.keys[1] in done.layers
    assert old.keys[0] not in done.layers  # BASE is everybody's
    assert len(done.layers) == 2
    assert len(done.blobs) == 6
    assert left_over(store) == {}
    check_whole(store)
    store.release("running")
    store.unpin(pinned.reference)
    assert names(store.collect(older_than=0.0).images) == ["active:1", "pinned:1", "recent:1"]
    assert (store.layers.all(), store.blobs.all(), left_over(store)) == ([], [], {})


def test_use_keeps_an_image(store, add):
    used = add("used", age=30 * DAY)
    add("unused", THIRD, age=30 * DAY)
    store.touch(used)
    assert names(store.collect(older_than=7 * DAY).images) == ["unused:1"]


def test_rm_takes_what_only_that_image_has(store, add):
    first = add("first", SECOND)
    second = add("second", THIRD)
    store.use_layers("running", first.keys)
    done = store.collect(older_than=0.0, images=[first])
    assert names(done.images) == ["first:1"]
    assert done.layers == ()  # a sandbox runs on them
    store.release("running")
    assert store.collect(older_than=7 * DAY).layers == ()  # they are young
    set_age(store, second, 0.0)
    os.utime(store.layers.folder(first.keys[1]) / "layer.json", (1, 1))
    assert store.collect(older_than=7 * DAY).layers == (first.keys[1],)
    check_whole(store)


def test_layers_made_here_live_with_their_use_and_their_image(store, add, tmp_path):
    image = add("base")
    upper = store.root / "sandboxes" / "upper"
    upper.mkdir()
    (upper / "new").write_text("x")
    store.use_layers("fork", [*image.keys, "snap-01"])
    store.adopt_layer(upper, image.keys[-1], "snap-01")
    assert not upper.exists()
    assert store.collect(older_than=0.0).layers == ()
    put_image(
        store,
        parse_reference("example.org/snap:1"),
        image.platform,
        {"config": {"Labels": {"a": "b"}}},
        [*image.layers, "snap-01"],
    )
    store.pin(parse_reference("example.org/snap:1"))
    store.release("fork")
    done = store.collect(older_than=0.0)
    assert done.layers == ()
    assert names(store.images()) == ["snap:1"]
    assert (store.layer("snap-01").diff / "new").read_text() == "x"
    store.unpin(parse_reference("example.org/snap:1"))
    assert set(store.collect(older_than=0.0).layers) == {"snap-01", *image.keys}


def test_an_image_needs_its_layers(store, add):
    image = add("base")
    with pytest.raises(ImageUnavailable, match="snap-99"):
        put_image(store, image.reference, image.platform, {}, [*image.layers, "snap-99"])


KILLER = """
import os, signal, sys
from pathlib import Path
from pytest_sandbox.oci.ids import find_ids
from pytest_sandbox.oci.store import Store
from pytest_sandbox.oci.store.blobs import Blobs
from pytest_sandbox.oci.store.layers import Layers
from pytest_sandbox.oci.store.records import Records
from pytest_sandbox.oci.supervisor import Supervisor

left = int(sys.argv[2])

def deadly(kind, name):
    usual = getattr(kind, name)
    def wrapped(*args, **kwargs):
        global left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return usual(*args, **kwargs)
    setattr(kind, name, wrapped)

for kind, name in ((Records, "remove"), (Layers, "discard"), (Blobs, "remove"),
                   (Store, "empty_trash")):
    deadly(kind, name)
usual_call = Supervisor.call
def call(self, job, *args, **kwargs):
    global left
    if job.endswith(":remove") and left == 0:
        import threading
        threading.Timer(0.03, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
    return usual_call(self, job, *args, **kwargs)
Supervisor.call = call
store = Store(Path(sys.argv[1]), Supervisor(find_ids))
store.collect(older_than=86400.0)
"""


def test_killed_at_any_point_it_is_finished_by_the_next(store, add):
    keep = add("keep", tar(("keep", b"1")))
    steps = 0
    while True:
        many = tar(*((f"file-{number}", b"x") for number in range(300)))
        add(f"gone-{steps}", SECOND, many, age=30 * DAY)
        words = [sys.executable, "-c", KILLER, str(store.root), str(steps)]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        check_whole(store)
        assert store.image(keep.reference, keep.platform) is not None
        steps += 1
        finished = store.collect(older_than=DAY)
        assert f"gone-{steps - 1}:1" not in names(store.images()), finished
        assert names(store.images()) == ["keep:1"]
        assert set(store.layers.all()) == set(keep.keys)
        assert len(store.blobs.all()) == 4
        assert left_over(store) == {}
    assert steps >= 8  # a record, two layers, four blobs, the trash


def test_sweeps_and_pulls_at_the_same_time(store):
    made = [Made(BASE, tar((f"file-{number}", b"x" * 5000))) for number in range(4)]
    with Scripted() as server:
        for number, each in enumerate(made):
            server.add("some/app", str(number), each)
        sweep = (
            "import sys, time\n"
            "from pathlib import Path\n"
            "from pytest_sandbox.oci.ids import find_ids\n"
            "from pytest_sandbox.oci.store import Store\n"
            "from pytest_sandbox.oci.supervisor import Supervisor\n"
            "store = Store(Path(sys.argv[1]), Supervisor(find_ids))\n"
            "until = time.monotonic() + 4\n"
            "while time.monotonic() < until:\n"
            "    store.collect(older_than=0.0)\n"
        )
        pulls = (
            "import sys, time\n"
            "from pathlib import Path\n"
            "from pytest_sandbox.oci.ids import find_ids\n"
            "from pytest_sandbox.oci.pull import pull\n"
            "from pytest_sandbox.oci.reference import parse_reference\n"
            "from pytest_sandbox.oci.registry import Registry\n"
            "from pytest_sandbox.oci.store import Store\n"
            "from pytest_sandbox.oci.supervisor import Supervisor\n"
            "store = Store(Path(sys.argv[1]), Supervisor(find_ids))\n"
            "until, done = time.monotonic() + 4, 0\n"
            "with Registry(environ={}) as registry:\n"
            "    while time.monotonic() < until:\n"
            "        name = parse_reference(f'{sys.argv[2]}/some/app:{done % 4}')\n"
            "        pull(name, store=store, registry=registry)\n"
            "        done += 1\n"
            "print(done)\n"
        )
        running = [
            subprocess.Popen(
                [sys.executable, "-c", code, str(store.root), server.host],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for code in (sweep, pulls, pulls)
        ]
        for process in running:
            out, err = process.communicate(timeout=90)
            assert (process.returncode, err) == (0, "")
            assert not out or int(out) > 3
    check_whole(store)
    store.collect(older_than=0.0)
    assert (store.layers.all(), store.blobs.all(), left_over(store)) == ([], [], {})
    assert listing(store.root / "images") == []

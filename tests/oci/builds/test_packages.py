"""Package lists and archives that builds share, with a manager of our own in place of apk's."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from pytest_sandbox.errors import Blame, BuildFailed
from pytest_sandbox.images.installing import KEPT, install_commands
from pytest_sandbox.runtimes.base import BuildRequest
from pytest_sandbox.runtimes.oci import build_packages
from pytest_sandbox.targets import Target, host_arch
from tests.oci.builds.conftest import tiny
from tests.oci.requiring import ordinary_user
from tests.oci.store.seeing import diffs, left_over
from tests.oci.supervisor.conftest import soon

TARGET = Target("linux", host_arch(), "alpine")
ROOT = Path(__file__).parents[3]

# Every index and every archive that it gets is another one, as from a mirror that never rests. The
# scripts of `evil` write wherever they can.
APK = f"""#!/bin/sh
verb=$1; shift; kept=; scripts=1; names=
while [ $# -gt 0 ]; do
  case $1 in
    --cache-dir) kept=$2; shift ;; --cache-max-age) shift ;; --no-scripts) scripts= ;;
    --*) ;; *) names="$names $1" ;;
  esac; shift
done
if [ $verb = update ]; then
  [ ! -e /broken ] || {{ echo 'temporary error: the mirror' >&2; exit 1; }}
  cat /proc/sys/kernel/random/uuid >$kept/INDEX; exit
fi
mkdir -p /opt
for name in $names; do
  case $name in no-*) echo 'unable to select packages:' >&2; exit 1 ;; esac
  kept=${{kept:-/opt}}
  [ -e $kept/$name.apk ] || cat /proc/sys/kernel/random/uuid >$kept/$name.apk
  [ "$scripts" ] || continue
  cat $kept/$name.apk >/opt/$name; cat $kept/INDEX >/opt/$name.index 2>/dev/null
  if [ $name = evil ]; then
    echo evil >$kept/one.apk; echo evil >$kept/INDEX; echo evil >$kept/new.apk
    mkdir -p {KEPT}/resolved; rm -f $kept/evil.apk
  fi
done
exit 0
"""


def base(busybox):
    """The tiny system with that manager."""
    out = tiny(busybox)
    with tarfile.open(fileobj=out, mode="a") as archive:
        for name, data in (("bin/apk", APK.encode()), ("etc/apk", None)):
            info = tarfile.TarInfo(name)
            info.mode, info.type = 0o755, tarfile.DIRTYPE if data is None else tarfile.REGTYPE
            info.size = len(data or b"")
            archive.addfile(info, io.BytesIO(data or b""))
    out.seek(0)
    return out


@pytest.fixture
def make(runtime, busybox):
    """Build an image with some packages; what its last layer holds below /opt."""
    names = set()
    if runtime.find_image("managed:1") is None:
        runtime.load_rootfs(base(busybox), "managed:1", TARGET, {})

    def build(*packages, before=(), say=lambda _: None, **more):
        name = f"tsuku/sandbox-test:{'-'.join(packages)}"
        lines = ["FROM managed:1", *before, *install_commands("alpine", packages)]
        text = "\n".join(lines) + "\n"
        names.add(name)
        more = {"network": "host", **more}
        runtime.build(BuildRequest(name, TARGET, text, {}, **more), say)
        found = diffs(runtime.store, runtime.image(name))[-1]
        assert all(path == "opt" or path.startswith("opt/") for path in found), found
        return {path[4:]: data for path, data in found.items() if data is not None}

    yield build
    for name in names:
        runtime.remove_image(name)
    build_packages.prune(runtime.store, older_than=0.0)
    # The files of an ended sandbox go behind it.
    assert soon(lambda: not left_over(runtime.store)), left_over(runtime.store)


def test_lists_and_archives_are_fetched_once(make):
    first = make("one")
    assert make("one") == first
    both = make("one", "two")
    assert both["one"] == first["one"]
    assert both["two.index"] == first["one.index"]
    assert make("two")["two"] == both["two"]
    alone = make("one", network="none")
    assert alone["one"] != first["one"], "without a network nothing is kept, or used"


def test_another_ground_has_its_own(make):
    first = make("one")
    other = make("one", before=["RUN echo another source >/etc/apk/sources"])
    assert other["one"] != first["one"]
    assert other["one.index"] != first["one.index"]


def test_what_a_build_writes_reaches_no_other(make):
    first = make("one")
    evil = make("evil")
    assert evil["evil.index"] == first["one.index"]
    again = make("one", "new", "evil")
    assert again["one"] == first["one"]
    assert again["one.index"] == first["one.index"]
    assert again["new"] != b"evil\n"
    assert again["evil"] == evil["evil"], "nor can it take anything away"


def test_lists_that_are_too_old_are_got_anew(make, runtime, monkeypatch):
    first = make("one")
    later = make("one", lists_since=time.time())
    assert later["one.index"] != first["one.index"]
    assert later["one"] == first["one"], "archives stay"
    monkeypatch.setattr(build_packages, "FRESH", -1.0)
    assert make("one")["one.index"] not in {first["one.index"], later["one.index"]}
    (ground,) = (runtime.store.root / build_packages.FOLDER).iterdir()
    assert len(list(ground.iterdir())) == 1, "older ones go"


def test_a_failure_that_old_lists_can_explain_is_tried_once_more(make):
    said = []
    with pytest.raises(BuildFailed, match="unable to select") as caught:
        make("no-such", say=said.append)
    assert caught.value.blame is Blame.RECIPE
    assert not [line for line in said if "once more" in line], "its lists were new"
    index = make("one")["one.index"]
    with pytest.raises(BuildFailed, match="unable to select"):
        make("no-other", say=said.append)
    assert len([line for line in said if "once more" in line]) == 1
    assert make("one")["one.index"] != index


def test_a_base_that_lies_reaches_nothing_of_the_host(make, runtime):
    """Its manager leaves links where files are looked for, and devices and pipes among them."""
    bad = (
        "RUN mkdir -p /real && cat /bin/apk >/real/apk && rm /bin/apk && { echo '#!/bin/sh';"
        f" echo 'cd {KEPT} && ln -s /etc resolved; ln -s /etc/shadow lists; ln -s / all;"
        " mkdir -p apk partial; ln -s /etc/hostname apk/link.apk; mkfifo pipe;"
        ' echo 1 >partial/half.apk; exec /real/apk "$@"\'; } >/bin/apk && chmod 755 /bin/apk'
        " && chmod 755 /real/apk"
    )
    make("one", before=[bad])
    (ground,) = (runtime.store.root / build_packages.FOLDER).iterdir()
    (generation,) = ground.iterdir()
    found = [path for path in generation.rglob("*") if not path.is_dir() or path.is_symlink()]
    assert not [path for path in found if path.is_symlink() or path.is_fifo()]
    assert sorted(path.name for path in found if path.parent.name != "sets") == [
        "INDEX", "meta.json", "one.apk",
    ]  # fmt: skip


def test_lists_that_cannot_be_had_are_told(make):
    with pytest.raises(BuildFailed, match="temporary error: the mirror") as caught:
        make("one", before=["RUN touch /broken"])
    assert caught.value.blame is Blame.NETWORK


def test_a_torn_or_foreign_generation_is_not_used(make, runtime):
    first = make("one")
    (ground,) = (runtime.store.root / build_packages.FOLDER).iterdir()
    for changes in ({"ids": "others"}, {"format": 0}, {"boot": "another", "synced": 0.0}):
        (generation,) = ground.iterdir()
        meta = json.loads((generation / "meta.json").read_text())
        (generation / "meta.json").write_text(json.dumps({**meta, **changes}))
        assert make("one")["one.index"] != first["one.index"]
    settled = {**meta, "boot": "another", "synced": time.time() + 1}
    (newest,) = ground.iterdir()
    (newest / "meta.json").write_text(json.dumps(settled))
    assert make("one") == make("one"), "what reached the disk outlives a restart"


def test_how_much_is_kept(make, runtime):
    make("one")
    make("one", before=["RUN echo 1 >/etc/apk/sources"])
    store = runtime.store
    folder = store.root / build_packages.FOLDER
    old, young = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime)
    assert build_packages.trim(store) == 0
    assert build_packages.trim(store, most=100, keep=young.name) > 0
    assert list(folder.iterdir()) == [young]
    assert not old.exists()
    assert build_packages.prune(store, older_than=60.0) == 0
    assert build_packages.prune(store, older_than=0.0) > 0
    assert not list(folder.iterdir())


AS_USER = """
import sys
from pathlib import Path
from pytest_sandbox.images.installing import install_commands
from pytest_sandbox.runtimes.base import BuildRequest
from pytest_sandbox.runtimes.oci.runtime import OciRuntime
from tests.oci.builds.conftest import remove
from tests.oci.builds.test_packages import TARGET, base
from tests.oci.store.seeing import diffs

place = Path(sys.argv[1])
runtime = OciRuntime(folder=place / "oci")
runtime.load_rootfs(base(Path(sys.argv[2])), "managed:1", TARGET, {})
text = "\\n".join(["FROM managed:1", *install_commands("alpine", ["one", "evil"])]) + "\\n"
found = []
for number in range(2):
    request = BuildRequest(f"t:{number}", TARGET, text, {}, network="host")
    runtime.build(request, lambda _: None)
    found.append(diffs(runtime.store, runtime.image(f"t:{number}"))[-1])
print(found[0] == found[1], sorted(found[0]))
remove(runtime, place, "oci")
"""


def test_as_an_ordinary_user(busybox, tmp_path):
    user = ordinary_user()
    place = Path(f"/tmp/psb-packages-{os.getpid()}")
    place.mkdir()
    os.chown(place, user.pw_uid, user.pw_gid)
    words = [sys.executable, "-c", AS_USER, str(place), str(busybox)]
    if os.geteuid() == 0:
        words = ["runuser", "-u", user.pw_name, "--", *words]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": user.pw_dir}
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, env=env, cwd="/", timeout=120, check=False
        )
    finally:
        place.rmdir()
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("True ['opt', 'opt/evil', 'opt/evil.index', 'opt/one'")

"""Stacks of layers: made by hypothesis, applied in every way that there is, compared."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import traceback

from hypothesis import strategies as st

from pytest_sandbox.errors import InvalidImage
from pytest_sandbox.oci import linux
from pytest_sandbox.oci.bounds import DEFAULT_BOUNDS
from pytest_sandbox.oci.layers.ahead import apply_ahead
from pytest_sandbox.oci.layers.diff import write_layer
from pytest_sandbox.oci.layers.pack import Packer
from pytest_sandbox.oci.layers.settle import settle
from pytest_sandbox.oci.layers.unpack import apply_layer
from tests.unit.oci.layers.archives import END, descriptor_of, header, padded, pax

SECOND = 1_000_000_000

# -- making them ---------------------------------------------------------------------------------

WORDS = st.sampled_from([b"a", b"b", b"c", b"\xc3\xa9 \\"])
PATHS = st.lists(WORDS, min_size=1, max_size=4).map(b"/".join)
TARGETS = st.one_of(
    PATHS,
    PATHS.map(lambda path: b"/" + path),
    PATHS.map(lambda path: b"../" + path),
    st.sampled_from([b"..", b"/", b"../../..", b"a/..", b"b/../../c"]),
)
MODES = st.sampled_from([0o755, 0o644, 0o600, 0o4755, 0o2750, 0o1777, 0o000])
# no setgid: with umoci, folders that had to be made below inherit it from the kernel
FOLDER_MODES = st.sampled_from([0o755, 0o700, 0o1777, 0o4711, 0o000])
IDS = st.sampled_from([0, 0, 0, 1, 1000, 65534])
TIMES = st.integers(0, 1_700_000_000).flatmap(
    lambda seconds: st.sampled_from([0, 1, 500_000_000]).map(lambda rest: seconds * SECOND + rest)
)
XATTRS = st.dictionaries(
    st.sampled_from([b"user.one", b"user.two", b"trusted.three"]),
    st.binary(min_size=1, max_size=8),
    max_size=2,
)
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")
KINDS = ["file"] * 5 + ["folder"] * 4 + ["symlink"] * 2 + ["hardlink"] * 2
KINDS += ["whiteout"] * 3 + ["opaque", "fifo", "capable", "device", "root"]


@st.composite
def entries(draw, known):
    """One member; `known` (path -> kind) is roughly what is there, so that most are possible."""
    kind = draw(st.sampled_from(KINDS))
    path = draw(PATHS)
    if draw(st.integers(0, 19)):
        words = path.split(b"/")
        for end in range(1, len(words)):
            if known.get(b"/".join(words[:end])) == "leaf":
                path = b"/".join(words[:end])
                break
    # a link to itself changes nothing here; umoci removes the file and fails
    leaves = [at for at in sorted(known) if known[at] == "leaf" and at != path]
    if kind == "hardlink" and not leaves:
        kind = "file"
    entry = {"kind": kind, "path": path, "slash": draw(st.sampled_from([b"", b"./", b"/"]))}
    for old in [at for at in known if at.startswith(path + b"/")]:
        if kind not in {"folder", "root"}:
            del known[old]
    if kind in {"whiteout", "opaque"}:
        if kind == "whiteout":
            known.pop(path, None)
        return entry
    known[path] = kind if kind in {"folder", "symlink"} else "leaf"
    modes = FOLDER_MODES if kind in {"folder", "root"} else MODES
    entry |= {"mode": draw(modes), "uid": draw(IDS), "gid": draw(IDS), "mtime": draw(TIMES)}
    if kind in {"file", "folder", "fifo"}:
        entry["xattrs"] = draw(XATTRS) if kind != "fifo" else {}
    if kind == "file":
        entry["data"] = draw(st.sampled_from([b"", b"x", b"y" * 600, b"z" * 300_000]))
    if kind == "symlink":
        entry["target"] = draw(TARGETS)
    if kind == "hardlink":
        entry["target"] = draw(st.sampled_from(leaves))
    return entry


@st.composite
def stacks(draw):
    """Two to four layers."""
    known: dict[bytes, str] = {}
    return [
        draw(st.lists(entries(known), min_size=1, max_size=9))
        for _ in range(draw(st.integers(2, 4)))
    ]


def member(entry):
    """An entry as bytes."""
    kind, path = entry["kind"], entry["slash"] + entry["path"]
    folder, slash, name = path.rpartition(b"/")
    if kind == "whiteout":
        return header(folder + slash + b".wh." + name, uid=0, gid=0)
    if kind == "opaque":
        return header(path + b"/.wh..wh..opq", uid=0, gid=0)
    told = [(b"SCHILY.xattr." + key, value) for key, value in entry.get("xattrs", {}).items()]
    if kind == "capable":
        told.append((b"SCHILY.xattr.security.capability", CAPABILITY))
    seconds, rest = divmod(entry["mtime"], SECOND)
    if rest:
        told.append((b"mtime", b"%d.%09d" % (seconds, rest)))
    more = {"mode": entry["mode"], "uid": entry["uid"], "gid": entry["gid"], "mtime": seconds}
    front = pax(*told) if told else b""
    if kind == "root":
        return front + header(b"./", b"5", **more)
    if kind in {"file", "capable"}:
        data = entry.get("data", b"capable")
        return front + header(path, size=len(data), **more) + padded(data)
    letters = {"folder": b"5", "symlink": b"2", "hardlink": b"1", "fifo": b"6", "device": b"3"}
    return front + header(path, letters[kind], link=entry.get("target", b""), **more)


def archive(layer):
    return b"".join(map(member, layer)) + END


# -- looking at them -----------------------------------------------------------------------------


def tree(root, *, since=None):
    """{path: everything that can be seen of it}; `since` (ns): folders younger have no time."""
    top = os.fsencode(root)
    found = {b".": seen(top, since)}
    for folder, folders, files in os.walk(top):
        for name in folders + files:
            path = os.path.join(folder, name)  # noqa: PTH118 - bytes
            found[os.path.relpath(path, top)] = seen(path, since)
    return found


def seen(path, since):
    status = os.lstat(path)
    kind = stat.S_IFMT(status.st_mode)
    content = b""
    if stat.S_ISREG(kind):
        with open(path, "rb") as file:  # noqa: PTH123 - bytes
            content = hashlib.sha256(file.read()).digest()
    elif stat.S_ISLNK(kind):
        content = os.readlink(path)  # noqa: PTH115 - bytes
    names = os.listxattr(path, follow_symlinks=False)
    marks = {
        n: os.getxattr(path, n, follow_symlinks=False) for n in sorted(names) if "overlay" not in n
    }
    marks.pop("security.selinux", None)
    time = status.st_mtime_ns
    if stat.S_ISDIR(kind) and since is not None and time >= since:
        time = -1
    return (
        kind,
        oct(stat.S_IMODE(status.st_mode)),
        status.st_uid,
        status.st_gid,
        time,
        content,
        marks,
    )


def same(ours, theirs):
    """Both without times where umoci, which `theirs` is of, has none."""
    for path, facts in theirs.items():
        if facts[4] == -1 and path in ours:
            mine = ours[path]
            ours = ours | {path: (*mine[:4], -1, *mine[5:])}
    return ours, theirs


# -- applying them -------------------------------------------------------------------------------


def by_umoci(folder, layers):
    """A tree that umoci unpacks; None where it refuses."""
    blobs = folder / "image/blobs/sha256"
    blobs.mkdir(parents=True)

    def blob(data):
        name = hashlib.sha256(data).hexdigest()
        (blobs / name).write_bytes(data)
        return {"digest": f"sha256:{name}", "size": len(data)}

    told = [blob(data) | {"mediaType": "application/vnd.oci.image.layer.v1.tar"} for data in layers]
    config = {
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [one["digest"] for one in told]},
    }  # fmt: skip
    kind = "application/vnd.oci.image"
    manifest = {
        "schemaVersion": 2, "mediaType": f"{kind}.manifest.v1+json",
        "config": blob(json.dumps(config).encode()) | {"mediaType": f"{kind}.config.v1+json"},
        "layers": told,
    }  # fmt: skip
    index = blob(json.dumps(manifest).encode()) | {
        "mediaType": f"{kind}.manifest.v1+json",
        "annotations": {"org.opencontainers.image.ref.name": "it"},
    }
    (folder / "image/index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [index]}))
    (folder / "image/oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return umoci_unpack(folder / "image", "it", folder / "bundle")


def umoci_unpack(image, tag, bundle):
    command = ["umoci", "unpack", "--image", f"{image}:{tag}", str(bundle)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return bundle / "rootfs" if done.returncode == 0 else None


def opened(path):
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY)


def onto_one_tree(folder, layers):
    """Every layer onto the same tree; None where one is refused."""
    folder.mkdir()
    root = opened(folder)
    try:
        for number, data in enumerate(layers):
            stream = descriptor_of(data)
            try:
                apply_layer(stream, root, DEFAULT_BOUNDS, layer=f"layer {number}", first=not number)
            except InvalidImage:
                return None
            finally:
                os.close(stream)
    finally:
        os.close(root)
    return folder


def overlay(lowers, upper, target):
    """Mount an overlay; `lowers` lowest first. Without `upper` it is read-only."""
    options = "userxattr,lowerdir=" + ":".join(str(path) for path in reversed(lowers))
    if upper is not None:
        work = upper.with_name(upper.name + ".work")
        work.mkdir()
        options += f",upperdir={upper},workdir={work}"
    target.mkdir()
    linux.mount("overlay", target, "overlay", 0, options)


def onto_overlays(folder, layers, *, ahead):
    """Each layer into an upper folder of its own; the merged tree, None where one is refused.

    `ahead`: each first for itself, then completed; `redone` counts those that had to be redone.
    """
    folder.mkdir()
    diffs = []
    redone = 0
    for number, data in enumerate(layers):
        diff = folder / f"diff{number}"
        diff.mkdir()
        try:
            if number == 0:
                _apply(data, diff)
            elif not ahead or not _ahead(folder, data, diff, diffs, number):
                redone += 1
                shutil.rmtree(diff)
                diff.mkdir()
                target = folder / f"on{number}"
                overlay(diffs, diff, target)
                _apply(data, target, like=diffs[-1])
                linux.umount(target)
        except InvalidImage:
            return None, redone
        diffs.append(diff)
    view = folder / "view"
    if len(diffs) == 1:
        return diffs[0], redone
    overlay(diffs, None, view)
    return view, redone


def _apply(data, root, like=None):
    stream, target = descriptor_of(data), opened(root)
    below = opened(like) if like else None
    try:
        apply_layer(stream, target, DEFAULT_BOUNDS, like=below, first=like is None)
    finally:
        for descriptor in (stream, target, *([below] if like else [])):
            os.close(descriptor)


def _ahead(folder, data, diff, diffs, number):
    stream, upper, like = descriptor_of(data), opened(diff), opened(diffs[-1])
    view = diffs[-1]
    if len(diffs) > 1:
        view = folder / f"below{number}"
        overlay(diffs, None, view)
    lower = opened(view)
    try:
        told = apply_ahead(stream, upper, DEFAULT_BOUNDS)
        if "redo" in told:
            return False
        pending = json.loads(json.dumps(told["pending"]))
        return not settle(upper, lower, like, pending)
    finally:
        for descriptor in (stream, upper, like, lower):
            os.close(descriptor)
        if len(diffs) > 1:
            linux.umount(view)


def layer_of(folder, *, overlay):
    """The layer that a folder is, unpacked bytes."""
    tree = opened(folder)
    with tempfile.TemporaryFile() as out:
        packer = Packer(out.fileno())
        try:
            write_layer(tree, packer, DEFAULT_BOUNDS, overlay=overlay)
            told = packer.finish()
        finally:
            packer.close()
            os.close(tree)
        out.seek(0)
        data = out.read()
    assert told.diff_id == "sha256:" + hashlib.sha256(data).hexdigest()
    assert (told.size, told.packed, told.digest) == (len(data), len(data), told.diff_id)
    return data


def apart(function):
    """Call a function in a child with mounts of its own, which end with it; its JSON answer."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            linux.unshare(linux.CLONE_NEWNS)
            linux.mount("none", "/", flags=linux.MS_REC | linux.MS_PRIVATE)
            answer = json.dumps(function()).encode()
            with os.fdopen(writing, "wb") as out:
                out.write(answer)
            status = 0
        except BaseException:
            traceback.print_exc(file=sys.stderr)
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        data = answer.read()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    return json.loads(data)


def shown(found):
    """A tree as JSON, devices (which become files) left out."""
    return sorted([repr(path), repr(facts)] for path, facts in found.items())

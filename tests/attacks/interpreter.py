"""An image of this very interpreter, a static busybox and the list of attacks: nothing to download,
the same on every engine.
"""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

from tests.oci.requiring import static_busybox

ROOT = Path(__file__).parents[2]
FOLDER = "/attacks"
PACKAGE = "pytest_sandbox.runtimes.oci.launchers.attacks"
APPLETS = (
    "sh cat cut dd echo env false grep head id kill ls mkdir mkfifo nc printf ps readlink rm sed "
    "seq setsid sleep sort stat tail test touch tr true wc xargs yes"
)
PYTHON = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
COMMAND = [PYTHON, "-I", "-S", f"{FOLDER}/run.py"]
"""What runs the list inside; see _RUN for its arguments."""

_RUN = f"""
import sys
sys.path.insert(0, {FOLDER!r})
from {PACKAGE} import Outside, run_all
marks, ports, sockets = sys.argv[1:]
outside = Outside(
    tuple(bytes.fromhex(mark) for mark in marks.split()),
    tuple(map(int, ports.split())),
    tuple(sockets.split()),
)
for line in run_all(outside):
    print(line.replace("\\n", " "))
"""
_LOOK = """
import json, sys
sys.path.insert(0, sys.argv[1])
import {package}, {more}
files = [getattr(m, "__spec__", None) for m in list(sys.modules.values())]
files = [(s.origin, s.cached) for s in files if s and s.has_location]
files.append((sys._stdlib_dir + "/os.py", None))  # marks where the library is
maps = [line.split(None, 5)[5:] for line in open("/proc/self/maps")]
print(json.dumps([files, sorted({{m[0].strip() for m in maps if m and m[0][0] == "/"}})]))
"""


def rootfs(more="json, threading, time") -> bytes:
    """The tar of a root file system with Python and the modules `more`; see COMMAND."""
    program = _LOOK.format(package=PACKAGE, more=more)
    words = [PYTHON, "-I", "-S", "-c", program, str(ROOT)]
    modules, mapped = json.loads(subprocess.run(words, check=True, capture_output=True).stdout)
    image = _Image()
    for folder in ("bin", "etc", "root", "var", "usr"):
        image.folder(folder)
    image.folder("tmp", 0o1777)
    for name in ("lib", "lib64"):
        if Path("/", name).is_symlink():
            image.link(name, str(Path("/", name).readlink()))
    for path in mapped:
        image.library(path)
    image.loader(PYTHON)
    for source, cached in modules:
        for path in filter(None, (source, cached)):
            if Path(path).is_file():
                inside = Path(path)
                if inside.is_relative_to(ROOT):
                    inside = Path(FOLDER, inside.relative_to(ROOT))
                image.file(inside, path)
    image.data(f"{FOLDER}/run.py", _RUN.encode())
    image.data("etc/passwd", b"root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/tmp:/bin/sh\n")
    image.data("etc/group", b"root:x:0:\nnogroup:x:65534:\n")
    image.file("bin/busybox", static_busybox())
    for applet in APPLETS.split():
        image.link(f"bin/{applet}", "busybox")
    return image.done()


class _Image:
    """A tar whose members come once, each after its folders."""

    def __init__(self):
        self._out = io.BytesIO()
        self._tar = tarfile.open(fileobj=self._out, mode="w")  # noqa: SIM115 - see done
        self._names: set[str] = set()

    def done(self) -> bytes:
        self._tar.close()
        return self._out.getvalue()

    def _add(self, name, kind, mode, *, data=b"", link="", time=0.0):
        name = str(name).strip("/")
        if name in self._names:
            return
        for parent in reversed(Path(name).parents[:-1]):
            self.folder(parent)
        self._names.add(name)
        info = tarfile.TarInfo(name)
        info.type, info.mode, info.size = kind, mode, len(data)
        info.linkname, info.mtime = link, int(time)
        self._tar.addfile(info, io.BytesIO(data))

    def folder(self, name, mode=0o755):
        self._add(name, tarfile.DIRTYPE, mode)

    def link(self, name, target):
        self._add(name, tarfile.SYMTYPE, 0o777, link=target)

    def data(self, name, data, time=0.0):
        self._add(name, tarfile.REGTYPE, 0o755, data=data, time=time)

    def file(self, name, source):
        """A file of the host; its time is kept, so that Python takes its compiled form."""
        self.data(name, Path(source).read_bytes(), Path(source).stat().st_mtime)

    def library(self, path):
        """A mapped file under its name, and under the names that link to it beside it."""
        self.file(path, path)
        for beside in Path(path).parent.iterdir():
            if beside.is_symlink() and os.path.realpath(beside) == path:
                self.link(beside, Path(path).name)

    def loader(self, program):
        """The dynamic loader under the name that a program asks for."""
        data = Path(program).read_bytes()
        (start,) = struct.unpack_from("<Q", data, 32)
        size, count = struct.unpack_from("<HH", data, 54)
        for at in range(start, start + count * size, size):
            kind, _, offset, _, _, length = struct.unpack_from("<IIQQQQ", data, at)
            if kind == 3:  # PT_INTERP
                name = Path(data[offset : offset + length].rstrip(b"\0").decode())
                self.file(Path(os.path.realpath(name.parent), name.name), name)

"""The program of docs/oci.md, run as it stands there, by root and by an ordinary user."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest

from pytest_sandbox.oci.engines import find_engine
from pytest_sandbox.oci.findings import Lacking
from pytest_sandbox.oci.platforms import host_platform
from tests.oci.registry.scripted import Scripted
from tests.oci.requiring import missing, ordinary_user, static_busybox
from tests.oci.store.making import Made, tar

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "oci.md"
_ENTER = 'mount --bind "$1" "$2" && cd "$3" && shift 3 && exec "$@"'
NAME = "localhost:5000/library/debian:bookworm-slim"


def program():
    """Every block of the page, in its order."""
    blocks = re.findall(r"(?ms)^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"))
    assert len(blocks) >= 8
    return "\n".join(blocks).replace("linux/amd64", str(host_platform()))


def tiny_image():
    """A static busybox as an image."""
    shell = tarfile.TarInfo("bin/busybox")
    shell.mode = 0o755
    links = [(f"bin/{name}", "-> busybox") for name in ("sh", "id", "cat")]
    folders = [(f"{name}/", None) for name in ("bin", "etc", "proc", "root", "tmp")]
    users = ("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")
    layer = tar(*folders, (shell, static_busybox().read_bytes()), *links, users)
    return Made(layer, tar(("etc/motd", b"hi\n")))


@pytest.fixture
def folder():
    """A folder that other users can walk through."""
    found = Path(tempfile.mkdtemp(prefix="sandbox-documented-"))
    found.chmod(0o711)
    yield found
    shutil.rmtree(found, ignore_errors=True)


@pytest.mark.parametrize("whose", ["own", "user"])
def test_the_program_of_the_page_runs(folder, whose):
    try:
        find_engine()
    except Lacking as lacking:
        missing(lacking.what)
    made = tiny_image()
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": str(folder)}
    with Scripted() as server:
        server.add("library/debian", "bookworm-slim", made)
        text = program()
        assert NAME in text
        script = folder / "program.py"
        script.write_text(text.replace("localhost:5000", server.host))
        work = folder / "here"
        work.mkdir()
        command = [sys.executable, "-W", "error", str(script)]
        if whose == "user":
            if os.geteuid() != 0:
                pytest.skip("this run is an ordinary user's already")
            account = ordinary_user()
            script.chmod(0o644)
            os.chown(work, account.pw_uid, account.pw_gid)
            project = folder / "project"
            project.mkdir()
            environ |= {"PYTHONPATH": str(project), "PYTHONDONTWRITEBYTECODE": "1"}
            enter = ["unshare", "--mount", "sh", "-c", _ENTER, "sh"]
            user = ["runuser", "-u", account.pw_name, "--"]
            command = [*enter, str(ROOT), str(project), str(work), *user, *command]
        done = subprocess.run(
            command, cwd=work, env=environ, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stderr
        assert ("mirrored/debian", "bookworm-slim") in server.manifests
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"{made.digest} 2 layers ")
    assert lines[2] == "['bin', 'etc', 'proc', 'root', 'tmp']"
    assert "'MODE=demo'" in lines[3]
    assert lines[4] == "0"
    inside, outside, _ = lines[5].split()
    assert inside == "0"
    assert int(outside) != 0

"""Hosts that lack something: made for real, in a mount namespace of their own, then probed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.oci.requiring import ordinary_user

ROOT = Path(__file__).parents[2]

_PROGRAM = """
import dataclasses, json, os, sys
from pathlib import Path
from pytest_sandbox.oci.ids import find_ids
from pytest_sandbox.oci.probes import probe_all, why_not
from pytest_sandbox.oci.store import Store
from pytest_sandbox.oci.supervisor import Supervisor
supervisor = Supervisor(find_ids)
store = Store(Path(sys.argv[1]), supervisor)
try:
    host = probe_all(store, **json.loads(sys.argv[2]))
finally:
    supervisor.close()
stopped = why_not(host.findings)
told = dataclasses.asdict(host)
print(json.dumps({"host": told, "why_not": stopped and stopped.id, "pid": supervisor.pid}))
"""


class Look:
    """What a probed host told."""

    def __init__(self, told):
        self.host = told["host"]
        self.why_not = told["why_not"]
        self.findings = {one["id"]: one for one in self.host["findings"]}

    def failed(self):
        return [one["id"] for one in self.host["findings"] if not one["ok"]]


class Hosts:
    """Makes a host by shell commands (`setup`, as root), and probes it as root or the user."""

    def __init__(self):
        self.place = Path(tempfile.mkdtemp(prefix="psb-host-"))
        self.place.chmod(0o755)

    def close(self):
        shutil.rmtree(self.place)

    def file(self, name, text, mode=0o755):
        path = self.place / name
        path.write_text(text)
        path.chmod(mode)
        return path

    def hide(self, *programs):
        """Commands that make programs impossible to run."""
        found = [one for one in map(_which, programs) if one]
        return "\n".join(f"mount --bind /dev/null {path}" for path in found)

    def probe(self, setup="", *, user=False, store="", inside="", **options):
        """`inside` is a command that runs the probing command it is given as its arguments."""
        folder = Path(store) if store else self.place / f"store-{len(list(self.place.iterdir()))}"
        argv = [sys.executable, "-c", _PROGRAM, str(folder), json.dumps(options)]
        home = self.place
        if user:
            account = ordinary_user()
            home = self.place / "home"
            home.mkdir(exist_ok=True)
            os.chown(home, account.pw_uid, account.pw_gid)
            argv[3] = str(home / folder.name) if not store else argv[3]
            argv = ["runuser", "-u", account.pw_name, "--", *inside.split(), *argv]
        else:
            argv = [*inside.split(), *argv]
        script = f'set -e\nmount --make-rprivate /\n{setup}\nexec "$@"'
        environ = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(home)}
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", script, "sh", *argv],
            capture_output=True,
            text=True,
            cwd="/",
            env=environ,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return Look(json.loads(done.stdout.splitlines()[-1]))


def _which(name):
    return shutil.which(name, path="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin")

"""An ordinary user without control groups: weaker limits are said, allowed, and refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.oci.registry.scripted import Scripted
from tests.oci.requiring import missing, ordinary_user
from tests.oci.store.making import Made, tar

ROOT = Path(__file__).parents[2]
_ENTER = 'mount --bind "$1" "$2" && cd "$3" && shift 3 && exec "$@"'
_TELL = """
import json, os
from pytest_sandbox.errors import SandboxError
from pytest_sandbox.runtimes.detect import choose_runtime
from pytest_sandbox.settings import Settings
told = {}
for name in ("auto", "oci"):
    for limits in ("allow", "refuse"):
        try:
            found = choose_runtime(name, os.environ, Settings(weak_limits=limits))
        except SandboxError as wrong:
            told[f"{name} {limits}"] = ["", wrong.what, wrong.next_step]
            continue
        info = found.runtime.info()
        told[f"{name} {limits}"] = [info.name, found.why, info.weak_limits]
        found.runtime.close()
print(json.dumps(told))
"""


class User:
    """Runs this project's programs as the ordinary user, in a folder of its own."""

    def __init__(self, folder, account):
        self.folder, self._account = folder, account
        for name in ("data", "cache", "work", "project"):
            (folder / name).mkdir()
            if os.geteuid() == 0:
                os.chown(folder / name, account.pw_uid, account.pw_gid)

    def python(self, *words, **variables):
        """Exit status and output of Python with those arguments."""
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        environ = {
            **kept,
            "HOME": str(self.folder / "work"),
            "PYTHONPATH": str(self.folder / "project"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTEST_SANDBOX_DATA": str(self.folder / "data"),
            "PYTEST_SANDBOX_CACHE": str(self.folder / "cache"),
            "DOCKER_HOST": "unix:///nonexistent/docker.sock",
            **variables,
        }
        command = [sys.executable, *words]
        work = str(self.folder / "work")
        if os.geteuid() == 0:
            user = ["runuser", "-u", self._account.pw_name, "--", *command]
            project = str(self.folder / "project")
            command = ["unshare", "--mount", "sh", "-c", _ENTER, "sh", str(ROOT), project, work]
            command += user
        else:
            environ["PYTHONPATH"] = str(ROOT)
        return subprocess.run(
            command,
            env=environ,
            cwd=work if os.geteuid() else "/",
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )


@pytest.fixture(scope="module")
def user():
    """The ordinary user; missing where there is none."""
    folder = Path(tempfile.mkdtemp(prefix="pytest-sandbox-weak-"))
    folder.chmod(0o711)
    found = User(folder, ordinary_user())
    try:
        yield found
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def told(user):
    """What each setting chooses: [name, why, limits] or ["", problem, next step]."""
    done = user.python("-c", _TELL)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    if not found["oci allow"][0]:
        missing(f"no sandboxes for this user: {found['oci allow'][1]}")
    if not found["oci allow"][2]:
        pytest.skip("this user has control groups")
    return found


def test_they_are_allowed_and_auto_says_so(told):
    name, why, limits = told["auto allow"]
    assert name == "oci"
    assert why == f"weaker limits for {', '.join(limits)}, but no Docker or Podman answers"
    assert told["oci allow"] == ["oci", "", limits]


@pytest.mark.parametrize("runtime", ["auto", "oci"])
def test_they_are_refused_with_what_would_change_it(told, runtime):
    name, problem, step = told[f"{runtime} refuse"]
    assert name == ""
    assert "no control group" in problem
    assert "memory" in problem
    assert step.endswith("--sandbox-weak-limits=allow")


def test_the_header_and_the_doctor_tell(user, told):
    limits = ", ".join(told["oci allow"][2])
    words = ["-m", "pytest", "-p", "no:cacheprovider", "--sandbox", "--sandbox-target=debian"]
    said = user.python(*words).stdout
    assert f"sandbox: weaker limits for {limits}, which can be evaded: " in said
    assert "sandbox: runtime oci with " in said
    said = user.python(*words, PYTEST_SANDBOX_WEAK_LIMITS="refuse").stdout
    assert "sandbox: runtime auto: none here: " in said
    assert "--sandbox-weak-limits=allow" in said
    assert (
        f"note: weaker limits for {limits}"
        in user.python("-m", "pytest_sandbox.cli", "doctor").stdout
    )


def test_run_takes_a_limit_only_as_it_is_allowed_to(user, told):
    limits = told["oci allow"][2]
    if "memory" not in limits:
        pytest.skip("the limit of memory can be set")
    call = ["-m", "pytest_sandbox.cli", "run", "-q"]
    with Scripted() as server:
        server.add("some/app", "1", Made(tar(("etc/", None))))
        name = f"{server.host}/some/app:1"
        none = user.python(*call, name, "/none")
        assert (none.returncode, "cannot be set" in none.stderr) == (127, False), none.stderr
        refused = user.python(*call, "--memory", "64m", name, "/none")
        assert refused.returncode == 125
        assert "--memory cannot be set (controller memory)" in refused.stderr
        assert "--weak-limits" in refused.stderr
        for words, variables in (
            (["--weak-limits"], {}),
            ([], {"PYTEST_SANDBOX_WEAK_LIMITS": "allow"}),
        ):
            weak = user.python(*call, *words, "--memory", "64m", name, "/none", **variables)
            assert weak.returncode == 127, weak.stderr

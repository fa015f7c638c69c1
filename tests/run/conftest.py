"""`pytest-sandbox run` as a user calls it: processes of their own, a real registry, and a look at
what is left afterwards. As root everything is shown twice, for an ordinary user too."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pwd
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import pytest

from pytest_sandbox.oci.registry import Registry
from tests.oci import making
from tests.oci.conftest import running_registry
from tests.oci.registry.test_real import push

ROOT = Path(__file__).parents[2]
USER = os.environ.get("PYTEST_SANDBOX_TEST_USER", "tester")
APPLETS = (
    "sh cat id ls echo env pwd sleep printf stty kill head tail yes wc grep true false test touch "
    "mkdir nc stat hostname dd tty cut sed seq readlink mount"
)
_ENTER = 'mount --bind "$1" "$2" && cd "$3" && shift 3 && exec "$@"'


def lacking(reason):
    """Skip, or fail where everything is required."""
    if os.environ.get("PYTEST_SANDBOX_REQUIRE"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def busybox():
    found = shutil.which("busybox")
    if found is None or b"ld-linux" in Path(found).read_bytes()[:4096]:
        lacking("no static busybox (apt-get install busybox-static)")
    return Path(found)


def tiny(busybox):
    """A layer of busybox and three accounts."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:

        def add(name, data=None, *, link="", mode=0o755):
            info = tarfile.TarInfo(name)
            info.mode, info.mtime = mode, 1_700_000_000
            info.type = tarfile.DIRTYPE if data is None else tarfile.REGTYPE
            if link:
                info.type, info.linkname = tarfile.SYMTYPE, link
            info.size = len(data or b"")
            archive.addfile(info, io.BytesIO(data or b""))

        for folder in ("bin", "etc", "root", "var", "home"):
            add(folder)
        add("tmp", mode=0o1777)
        add("bin/busybox", busybox.read_bytes())
        for applet in APPLETS.split():
            add(f"bin/{applet}", link="busybox")
        accounts = b"root:x:0:0::/root:/bin/sh\ndaemon:x:1:1::/var:/bin/sh\napp:x:1000:1000::/home:"
        add("etc/passwd", accounts + b"/bin/sh\n", mode=0o644)
        add("etc/group", b"root:x:0:\ndaemon:x:1:\napp:x:1000:\n", mode=0o644)
        add("etc/plain", b"no program", mode=0o644)
    return out.getvalue()


@pytest.fixture(scope="session")
def registry(tmp_path_factory):
    """A real registry of this session."""
    with running_registry(tmp_path_factory.mktemp("run-registry")) as found:
        yield found


@pytest.fixture(scope="session")
def image(registry, busybox):
    """A small image in it: busybox, with an environment and a command of its own."""
    made = making.image(
        tiny(busybox),
        config={"config": {"Cmd": ["sh"], "Env": ["PATH=/bin", "FROM=image"]}},
    )
    with Registry(environ={}) as client:
        push(client, registry.host, "library/tiny:1", made)
    return f"localhost:{registry.host.rpartition(':')[2]}/library/tiny:1"


@pytest.fixture(scope="session")
def debian(registry):
    """The project's own Debian base, pushed to the registry under its usual name."""
    if os.environ.get("PYTEST_SANDBOX_TEST_NO_BASE"):
        pytest.skip("no base is to be made")
    from pytest_sandbox.errors import SandboxError
    from pytest_sandbox.images.families import load_families
    from pytest_sandbox.runtimes.bases import ensure_base
    from pytest_sandbox.runtimes.oci.runtime import OciRuntime
    from pytest_sandbox.targets import Target, host_arch

    engine = OciRuntime()
    try:
        base = load_families()["debian"].image
        name = ensure_base(engine, base, Target("linux", host_arch(), "debian")).name
    except SandboxError as wrong:
        if os.environ.get("PYTEST_SANDBOX_REQUIRE"):
            raise
        pytest.skip(str(wrong))
    finally:
        engine.close()
    reference = f"localhost:{registry.host.rpartition(':')[2]}/library/debian:bookworm-slim"
    words = [sys.executable, "-m", "pytest_sandbox.cli", "image", "push", "-q", name, reference]
    subprocess.run(words, check=True, capture_output=True)
    return reference


class Cli:
    """The command as one user of this machine has it, with a store of its own."""

    def __init__(self, name, home):
        self.name = name
        self.home = home
        self.data = home / "data"
        self.pids = []
        self.began = time.time()
        self.ids = (os.geteuid(), os.getegid())
        self.folder = home / "work"
        self._before = []
        self.env = {
            name: text
            for name, text in os.environ.items()
            if not name.startswith(("PYTEST_", "XDG_", "PYTHON"))
        }
        self.env |= {"PYTEST_SANDBOX_DATA": str(self.data), "PYTHONPATH": str(ROOT)}
        self.env |= {"HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1", "LC_ALL": "C.UTF-8"}
        for folder in (self.data, self.folder):
            folder.mkdir()
        home.chmod(0o700)
        if name == "user":
            self._become_user()

    def _become_user(self):
        account = pwd.getpwnam(USER)
        self.ids = (account.pw_uid, account.pw_gid)
        for folder in (self.home, self.data, self.folder):
            os.chown(folder, *self.ids)
        become = ["setpriv", "--reuid", str(self.ids[0]), "--regid", str(self.ids[1])]
        become.append("--clear-groups")
        self._before = become
        tried = subprocess.run(
            self.command("--version"), capture_output=True, text=True, env=self.env, cwd="/",
            check=False,
        )  # fmt: skip
        if tried.returncode == 0:
            return
        place = self.home / "project"  # the project lies where that user cannot walk to
        place.mkdir()
        self.env["PYTHONPATH"] = str(place)
        words = [_ENTER, "sh", str(ROOT), str(place), str(self.folder)]
        self._before = ["unshare", "--mount", "sh", "-c", *words, *become]
        tried = subprocess.run(
            self.command("--version"), capture_output=True, text=True, env=self.env, cwd="/",
            check=False,
        )  # fmt: skip
        if tried.returncode != 0:
            lacking(f"{USER} cannot run {sys.executable}: {tried.stderr.strip()[-300:]}")

    def command(self, *words):
        return [*self._before, sys.executable, "-m", "pytest_sandbox.cli", *words]

    @contextlib.contextmanager
    def start(self, *words, **options):
        """Its process while the context is open; it does not outlive a test that fails."""
        process = self.begin(*words, **options)
        with process:
            try:
                yield process
            except BaseException:
                process.kill()
                raise

    def begin(self, *words, **options):
        """Its process."""
        options = {"env": self.env, "cwd": self.folder, "stdin": subprocess.DEVNULL} | options
        process = subprocess.Popen(self.command(*words), **options)
        self.pids.append(process.pid)
        return process

    def __call__(self, *words, input=None, timeout=120, **options):
        """Run it to its end: a CompletedProcess with text."""
        pipe = subprocess.PIPE
        if input is not None:
            options["stdin"] = pipe
        options = {"stdout": pipe, "stderr": pipe} | options
        with self.start(*words, **options) as process:
            out, err = process.communicate(input, timeout)
        return subprocess.CompletedProcess(words, process.returncode, _text(out), _text(err))

    def good(self, *words, **options):
        """What it prints; it must succeed without a word on stderr."""
        done = self(*words, **options)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return done.stdout

    def look(self, name):
        """What `inspect` tells of a sandbox."""
        return json.loads(self.good("inspect", "--json", name))

    def left(self):
        """What there still is of sandboxes: files of the store, mounts outside of supervisors."""
        store = self.data / "oci"
        found = []
        for name in ("containers", "sandboxes", "uses", "trash", "tmp", "leases"):
            if (store / name).is_dir():
                found += [str(e) for e in (store / name).iterdir() if e.name != ".lock"]
        for room in Path("/tmp").glob("pytest-sandbox-room-*-*-*"):
            with contextlib.suppress(FileNotFoundError):
                made = room.lstat()
                supervisor = Path("/proc", room.name.split("-")[4])
                ours = made.st_uid == self.ids[0] and made.st_ctime > self.began
                found += [str(room)] if ours and not supervisor.exists() else []
        return found + [line for line in _mounts() if "pytest-sandbox-room" in line]

    def tidy(self):
        """Remove every sandbox."""
        if names := self.good("ps", "-aq").split():
            self("rm", "-f", *names)

    def nothing_left(self, seconds=0.0):
        """Wait so long at most for that."""
        until = time.monotonic() + seconds
        while (found := self.left()) and time.monotonic() < until:
            time.sleep(0.02)
        assert found == []


def _text(data):
    return data.decode("utf-8", "surrogateescape") if isinstance(data, bytes) else data


def _mounts():
    return Path("/proc/self/mountinfo").read_text().splitlines()


def cgroups_of(identity):
    """The control groups of a sandbox that are there."""
    found = []
    for folder, names, _ in os.walk("/sys/fs/cgroup"):
        if Path(folder).name == "pytest-sandbox":
            found += [f"{folder}/{name}" for name in names if name == identity]
    return found


def processes(text):
    """The pids whose command line holds `text`."""
    found = []
    for entry in os.listdir("/proc"):  # noqa: PTH208
        if entry.isdigit() and int(entry) != os.getpid():
            try:
                line = Path("/proc", entry, "cmdline").read_bytes().replace(b"\0", b" ")
                state = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if text.encode() in line and state != "Z" and b"pytest_sandbox" not in line:
                found.append(int(entry))
    return found


def wait_for(condition, seconds=20.0):
    """Until something is so."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.01)


@pytest.fixture(scope="session", params=["self", "user"])
def cli(request, image):
    """The command for this process's user, and for an ordinary one; the image is pulled already."""
    if request.param == "user":
        if os.geteuid() != 0:
            pytest.skip("this run is an ordinary user's already")
        if USER not in {account.pw_name for account in pwd.getpwall()}:
            lacking(f"there is no user {USER}; next: useradd -m {USER}")
    home = Path(tempfile.mkdtemp(prefix="psb-run-", dir="/tmp"))
    found = Cli(request.param, home)
    done = found("run", "--rm", "-q", image, "true")
    if done.returncode == 125 and "doctor" in done.stderr:
        lacking(done.stderr)
    assert done.returncode == 0, done.stderr
    yield found
    found.tidy()
    subprocess.run(found.command("image", "prune", "--all"), env=found.env, check=False,
                   capture_output=True, cwd="/")  # fmt: skip
    _remove(found)


def _remove(cli):
    from pytest_sandbox.oci.ids import find_ids
    from pytest_sandbox.oci.supervisor import Supervisor

    if cli.name == "user":  # root may remove everything
        shutil.rmtree(cli.home, ignore_errors=True)
        return
    supervisor = Supervisor(find_ids)
    descriptor = os.open(cli.home.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        words = {"names": [cli.home.name]}
        supervisor.call("pytest_sandbox.oci.layers.jobs:remove", words, [descriptor], where="host")
    finally:
        os.close(descriptor)
        supervisor.close()


@pytest.fixture
def clean(cli):
    """Nothing is left by the test that asks for this."""
    cli.tidy()  # after another test that failed
    yield
    try:
        cli.nothing_left(5)
    finally:
        cli.tidy()

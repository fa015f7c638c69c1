"""Image config -> runtime spec, as a table: what the image says, what the caller says, what the
sandbox gets. The roots here are folders of this process; no engine takes part.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from pytest_sandbox.errors import (
    InvalidImage,
    MissingDirectory,
    SandboxError,
    UnknownUser,
    UsageError,
)
from pytest_sandbox.oci.config import Port, parse_image_config
from pytest_sandbox.oci.ids import Range
from pytest_sandbox.oci.spec.generate import Overrides, generate
from pytest_sandbox.oci.spec.process import host_values, signal_number, stop_signal
from pytest_sandbox.oci.spec.root import prepare_root, root_request

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
FULL = [Range(0, 100000, 65536)]
PASSWD = """\
root:x:0:0:root:/root:/bin/sh
# a comment
broken
zero:x:nought:0::/:/bin/sh
app:x:1000:1001:App:/home/app:/bin/sh
bare:x:1005:1006::
twin:x:1000:7::/second:
"""
GROUP = """\
root:x:0:
wheel:x:10:root,app
app:x:1001:
video:x:44:app
tty:x:5:twin
empty:x:99:
"""


def make_root(folder: Path) -> Path:
    (folder / "etc").mkdir(parents=True)
    (folder / "etc/passwd").write_text(PASSWD)
    (folder / "etc/group").write_text(GROUP)
    return folder


def config_of(**inner: Any) -> Any:
    """An image config with Cmd `sh`, unless `inner` says otherwise."""
    document = {"os": "linux", "architecture": "amd64", "config": {"Cmd": ["sh"], **inner}}
    return parse_image_config(json.dumps(document).encode())


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(make_root(tmp_path / "root"), os.O_PATH | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


def convert(root: int, image: dict[str, Any], user: str = "", **overrides: Any) -> dict[str, Any]:
    config = config_of(**image)
    request = root_request(config, user=user, cwd=overrides.get("cwd", ""))
    return generate(
        config,
        prepare_root(root, request),
        root="rootfs",
        uid_map=FULL,
        gid_map=FULL,
        overrides=Overrides(**overrides),
        architecture="amd64",
        kernel="6.1.0",
        hard_nofile=4096,
    )


def person(uid: int, gid: int, *more: int) -> dict[str, Any]:
    found: dict[str, Any] = {"uid": uid, "gid": gid, "umask": 0o022}
    return found | ({"additionalGids": list(more)} if more else {})


# (id, image, overrides, a key of `process`, its value)
CASES: list[tuple[str, dict[str, Any], dict[str, Any], str, Any]] = [
    ("cmd", {"Cmd": ["a", "b"]}, {}, "args", ["a", "b"]),
    ("entrypoint", {"Entrypoint": ["e"], "Cmd": None}, {}, "args", ["e"]),
    ("entrypoint-cmd", {"Entrypoint": ["e", "-x"], "Cmd": ["c"]}, {}, "args", ["e", "-x", "c"]),
    ("argv-for-cmd", {"Cmd": ["c"]}, {"argv": ["d"]}, "args", ["d"]),
    ("argv-keeps-entry", {"Entrypoint": ["e"]}, {"argv": ["d"]}, "args", ["e", "d"]),
    ("entry-drops-cmd", {"Entrypoint": ["e"]}, {"entrypoint": ["f"]}, "args", ["f"]),
    ("entry-and-argv", {}, {"entrypoint": ["f"], "argv": ["g"]}, "args", ["f", "g"]),
    ("entry-reset", {"Entrypoint": ["e"]}, {"entrypoint": [""], "argv": ["g"]}, "args", ["g"]),
    ("entry-none", {"Entrypoint": ["e"]}, {"entrypoint": [], "argv": ["g"]}, "args", ["g"]),
    ("entry-of-nothing", {"Entrypoint": [""], "Cmd": ["c"]}, {}, "args", ["c"]),
    ("entry-as-text", {"Entrypoint": "e f", "Cmd": ["c"]}, {}, "args", ["e f", "c"]),
    (
        "argv-exact",
        {},
        {"argv": ["a  b", "", "'\"", "ü ☃\t\n"]},
        "args",
        ["a  b", "", "'\"", "ü ☃\t\n"],
    ),
    ("env-none", {}, {}, "env", [PATH, "HOME=/root"]),
    ("env-order", {"Env": ["B=1", "A=2"]}, {}, "env", [PATH, "B=1", "A=2", "HOME=/root"]),
    ("env-path", {"Env": ["A=1", "PATH=/x"]}, {}, "env", ["PATH=/x", "A=1", "HOME=/root"]),
    (
        "env-in-place",
        {"Env": ["A=1", "B=2"]},
        {"env": ["A=3", "C=4"]},
        "env",
        [PATH, "A=3", "B=2", "C=4", "HOME=/root"],
    ),
    ("env-unset", {"Env": ["A=1", "B=2"]}, {"env": ["A"]}, "env", [PATH, "B=2", "HOME=/root"]),
    ("env-unset-path", {}, {"env": ["PATH"]}, "env", ["HOME=/root"]),
    ("env-twice", {"Env": ["A=1", "A=2"]}, {}, "env", [PATH, "A=2", "HOME=/root"]),
    ("env-equals", {"Env": ["A=b=c="]}, {}, "env", [PATH, "A=b=c=", "HOME=/root"]),
    ("env-empty", {"Env": ["A="]}, {}, "env", [PATH, "A=", "HOME=/root"]),
    ("env-lines", {}, {"env": ["A=x\ny"]}, "env", [PATH, "A=x\ny", "HOME=/root"]),
    ("env-name-only", {"Env": ["A=1", "A"]}, {}, "env", [PATH, "HOME=/root"]),
    ("env-home", {"Env": ["HOME=/h"]}, {}, "env", [PATH, "HOME=/h"]),
    ("env-tty", {}, {"tty": True}, "env", [PATH, "TERM=xterm", "HOME=/root"]),
    (
        "env-tty-image",
        {"Env": ["TERM=dumb"]},
        {"tty": True},
        "env",
        [PATH, "TERM=dumb", "HOME=/root"],
    ),
    ("env-hostname", {}, {"hostname": "h"}, "env", [PATH, "HOSTNAME=h", "HOME=/root"]),
    ("env-user-home", {"User": "app"}, {}, "env", [PATH, "HOME=/home/app"]),
    ("env-no-home", {"User": "4242"}, {}, "env", [PATH, "HOME=/"]),
    ("cwd-none", {}, {}, "cwd", "/"),
    ("cwd-image", {"WorkingDir": "/w/x"}, {}, "cwd", "/w/x"),
    ("cwd-relative", {"WorkingDir": "w"}, {}, "cwd", "/w"),
    ("cwd-dots", {"WorkingDir": "/a/../../b//c/."}, {}, "cwd", "/b/c"),
    ("cwd-override", {"WorkingDir": "/w"}, {"cwd": "/v"}, "cwd", "/v"),
    ("user-none", {}, {}, "user", person(0, 0, 10)),
    ("user-name", {"User": "app"}, {}, "user", person(1000, 1001, 10, 44)),
    ("user-uid", {"User": "1000"}, {}, "user", person(1000, 1001, 10, 44)),
    ("user-uid-unknown", {"User": "4242"}, {}, "user", person(4242, 0)),
    ("user-name-group", {"User": "app:video"}, {}, "user", person(1000, 44)),
    ("user-uid-gid", {"User": "1000:99"}, {}, "user", person(1000, 99)),
    ("user-uid-gid-unknown", {"User": "7:8"}, {}, "user", person(7, 8)),
    ("user-uid-group", {"User": "7:video"}, {}, "user", person(7, 44)),
    ("user-name-gid", {"User": "app:5"}, {}, "user", person(1000, 5)),
    ("user-only-group", {"User": ":video"}, {}, "user", person(0, 44)),
    ("user-no-group", {"User": "app:"}, {}, "user", person(1000, 1001, 10, 44)),
    ("user-few-fields", {"User": "bare"}, {}, "user", person(1005, 1006)),
    ("user-override", {"User": "app"}, {"user": "root:root"}, "user", person(0, 0)),
    ("terminal", {}, {"tty": True}, "terminal", True),
    ("privileges-off", {}, {}, "noNewPrivileges", False),
    ("privileges-on", {}, {"no_new_privileges": True}, "noNewPrivileges", True),
]


@pytest.mark.parametrize(
    ("image", "overrides", "key", "value"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_process(
    root: int, image: dict[str, Any], overrides: dict[str, Any], key: str, value: Any
) -> None:
    assert convert(root, image, **overrides)["process"][key] == value


# (id, image, overrides, annotation, its value; None: absent)
ANNOTATIONS: list[tuple[str, dict[str, Any], dict[str, Any], str, str | None]] = [
    ("stop", {"StopSignal": "SIGINT"}, {}, "org.opencontainers.image.stopSignal", "SIGINT"),
    (
        "stop-override",
        {"StopSignal": "SIGINT"},
        {"stop_signal": "USR1"},
        "org.opencontainers.image.stopSignal",
        "USR1",
    ),
    ("stop-none", {}, {}, "org.opencontainers.image.stopSignal", None),
    (
        "ports",
        {"ExposedPorts": {"80/tcp": {}, "53/udp": {}}},
        {},
        "org.opencontainers.image.exposedPorts",
        "53/udp,80/tcp",
    ),
    ("os", {}, {}, "org.opencontainers.image.os", "linux"),
    ("label", {"Labels": {"a": "b"}}, {}, "a", "b"),
    (
        "label-wins",
        {"Labels": {"org.opencontainers.image.architecture": "mine"}},
        {},
        "org.opencontainers.image.architecture",
        "mine",
    ),
    ("crun-hook", {"Labels": {"run.oci.hooks.stdout": "/x"}}, {}, "run.oci.hooks.stdout", None),
    (
        "systemd",
        {"Labels": {"org.systemd.property.CPUWeight": "1"}},
        {},
        "org.systemd.property.CPUWeight",
        None,
    ),
]


@pytest.mark.parametrize(
    ("image", "overrides", "name", "value"),
    [c[1:] for c in ANNOTATIONS],
    ids=[c[0] for c in ANNOTATIONS],
)
def test_annotations(
    root: int, image: dict[str, Any], overrides: dict[str, Any], name: str, value: str | None
) -> None:
    assert convert(root, image, **overrides)["annotations"].get(name) == value


# (id, image, overrides, the error, what its text says)
REFUSED: list[tuple[str, dict[str, Any], dict[str, Any], type[SandboxError], str]] = [
    ("nothing-to-run", {"Cmd": None}, {}, UsageError, "names no command"),
    ("entry-drops-all", {}, {"entrypoint": [""]}, UsageError, "names no command"),
    ("empty-program", {}, {"argv": [""]}, UsageError, "name is empty"),
    ("nul-argv", {}, {"argv": ["a\0b"]}, UsageError, r"args\[0\].*NUL"),
    ("nul-env", {"Env": ["A=\0"]}, {}, UsageError, "env.*NUL"),
    ("nul-label", {"Labels": {"a": "\0"}}, {}, UsageError, "annotations/a.*NUL"),
    ("bytes", {}, {"argv": ["\udcff"]}, UsageError, "not UTF-8"),
    ("env-no-name", {}, {"env": ["=x"]}, UsageError, "without a name"),
    ("env-no-name-image", {"Env": ["=x"]}, {}, InvalidImage, "without a name"),
    ("cwd-relative", {}, {"cwd": "w"}, UsageError, "not absolute"),
    ("cwd-file", {"WorkingDir": "/etc/passwd"}, {}, MissingDirectory, "/etc/passwd is no folder"),
    ("cwd-under-file", {}, {"cwd": "/etc/passwd/x"}, MissingDirectory, "is no folder"),
    ("cwd-proc", {"WorkingDir": "/proc/self/fd/8"}, {}, MissingDirectory, "lies in /proc"),
    ("user-unknown", {"User": "nobody"}, {}, UnknownUser, "'nobody'.*/etc/passwd"),
    ("user-malformed", {"User": "zero"}, {}, UnknownUser, "'zero'"),
    ("group-unknown", {"User": "app:none"}, {}, UnknownUser, "'none'.*/etc/group"),
    ("uid-unmapped", {"User": "65536"}, {}, UsageError, "65536 is outside.*0-65535"),
    ("gid-unmapped", {"User": "0:70000"}, {}, UsageError, "group 70000 is outside"),
    ("uid-huge", {"User": "99999999999"}, {}, UnknownUser, "higher than"),
    ("uid-31-bits", {"User": str(1 << 31)}, {}, UnknownUser, "higher than 2147483647"),
    ("volume-root", {"Volumes": {"/a/..": {}}}, {}, InvalidImage, "whole root"),
    ("host-name", {}, {"hostname": "a b"}, UsageError, "no host name"),
    ("host-name-long", {}, {"hostname": "a" * 65}, UsageError, "no host name"),
]


@pytest.mark.parametrize(
    ("image", "overrides", "error", "text"),
    [c[1:] for c in REFUSED],
    ids=[c[0] for c in REFUSED],
)
def test_refused(
    root: int,
    image: dict[str, Any],
    overrides: dict[str, Any],
    error: type[SandboxError],
    text: str,
) -> None:
    with pytest.raises(error, match=text) as caught:
        convert(root, image, **overrides)
    assert caught.value.next_step
    assert caught.value.headline().isprintable()


def test_user_of_more_than_root_has_no_capabilities_in_force(root: int) -> None:
    mine = convert(root, {"User": "app"})["process"]["capabilities"]
    assert mine["effective"] == mine["permitted"] == mine["ambient"] == mine["inheritable"] == []
    roots = convert(root, {})["process"]["capabilities"]
    assert len(roots["effective"]) == 14
    assert mine["bounding"] == roots["bounding"] == roots["effective"] == roots["permitted"]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("SIGTERM", 15),
        ("term", 15),
        ("SigKill", 9),
        ("9", 9),
        ("SIGRTMIN", 34),
        ("SIGRTMIN+3", 37),
        ("RTMAX-1", 63),
        ("64", 64),
        ("SIGSTKFLT", 16),
    ],
)
def test_signal_names(text: str, number: int) -> None:
    assert signal_number(text) == number
    assert stop_signal(config_of(StopSignal=text)) == number


@pytest.mark.parametrize(
    "text", ["0", "65", "-1", "SIG", "FOO", "RTMIN-1", "RTMIN+31", "SIGRTMAX+1"]
)
def test_no_signals(text: str) -> None:
    with pytest.raises(UsageError, match="is no signal"):
        signal_number(text)
    with pytest.raises(InvalidImage, match="StopSignal"):
        stop_signal(config_of(StopSignal=text))


def test_stop_signal_of_the_caller_and_by_default() -> None:
    assert stop_signal(config_of(StopSignal="nonsense"), "HUP") == 1
    assert stop_signal(config_of()) == 15


def test_ports() -> None:
    found = config_of(ExposedPorts={"80": {}, "53/udp": {}, "8000-8001/TCP": {}, "80/tcp": {}})
    assert set(found.ports()) == {
        Port(80, "tcp"),
        Port(53, "udp"),
        Port(8000, "tcp"),
        Port(8001, "tcp"),
    }
    for bad in ("0", "65536", "http", "80/icmp", "9-8", ""):
        with pytest.raises(InvalidImage, match="ExposedPorts"):
            config_of(ExposedPorts={bad: {}}).ports()


def test_config_keeps_what_it_does_not_know() -> None:
    document = {
        "os": "linux",
        "architecture": "arm64",
        "future": [1],
        "config": {
            "Healthcheck": {"Test": ["CMD", "true"], "Interval": 30_000_000_000},
            "OnBuild": ["RUN x"],
            "Shell": ["/bin/bash", "-c"],
            "ArgsEscaped": True,
            "Unheard": {"of": None},
        },
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + "0" * 64]},
    }
    found = parse_image_config(document)
    assert found.raw == document
    assert found.healthcheck == {"Test": ["CMD", "true"], "Interval": 30_000_000_000}
    assert found.on_build == ("RUN x",)
    assert found.shell == ("/bin/bash", "-c")
    assert found.args_escaped
    assert found.diff_ids == ("sha256:" + "0" * 64,)


@pytest.mark.parametrize(
    ("document", "text"),
    [
        (b"[]", "not an object"),
        (b"{", "no JSON"),
        (b'{"os": "windows"}', "windows"),
        (b'{"config": 5}', "config is 5"),
        (b'{"config": {"Env": {"A": "b"}}}', "Env"),
        (b'{"config": {"Env": [1]}}', "Env is 1"),
        (b'{"config": {"Cmd": [null]}}', "Cmd is null"),
        (b'{"config": {"User": 0}}', "User is 0"),
        (b'{"config": {"Volumes": ["/a"]}}', "Volumes"),
        (b'{"config": {"Labels": {"a": 1}}}', "'a' of"),
        (b'{"config": {"WorkingDir": ["/"]}}', "WorkingDir"),
        (b'{"config": {"User": "a", "User": "root"}}', "twice"),
    ],
)
def test_config_of_wrong_types(document: bytes, text: str) -> None:
    with pytest.raises(InvalidImage, match=text):
        parse_image_config(document)


def test_nulls_are_absent() -> None:
    nothing = dict.fromkeys(
        ("Env", "Cmd", "Entrypoint", "Volumes", "Labels", "User", "Healthcheck")
    )
    found = parse_image_config({"os": None, "config": nothing, "rootfs": None})
    assert (found.env, found.cmd, found.user, found.labels) == ((), (), "", {})


def test_env_takes_the_hosts_values() -> None:
    host = {"A": "1", "B": ""}
    assert host_values(["A", "B", "C", "D=x", "A=y"], host) == ["A=1", "B=", "C", "D=x", "A=y"]

"""Images whose shell is another one, or that have none."""

from __future__ import annotations

import io
import tarfile
from typing import TYPE_CHECKING

import pytest

from pytest_sandbox.errors import SandboxGone, SandboxTimeout
from pytest_sandbox.runtimes.base import BuildRequest, Changes
from pytest_sandbox.runtimes.hold import program
from tests.contract.conftest import RUN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_sandbox.runtimes.base import Runtime, System
    from pytest_sandbox.targets import Target


@pytest.fixture(scope="module")
def bash_image(runtime: Runtime, image: str, target: Target) -> Iterator[str]:
    """The same image with bash as its /bin/sh, as most families have it."""
    text = f"FROM {image}\nRUN test -x /bin/bash && ln -sf bash /bin/sh\n"
    name = f"tsuku/sandbox-test:bash-{RUN}"
    request = BuildRequest(name, target, text, {"Dockerfile": text.encode()}, network="none")
    runtime.build(request, lambda _line: None)
    yield name
    runtime.remove_image(name)


def test_bash(start: Callable[..., System], bash_image: str):
    system = start(image=bash_image, env={"FROM_SPEC": "a b"})
    lines = system.run(["env"], env={"ONE": "it's", "x.y": "odd"}).stdout.splitlines()
    names = {line.partition("=")[0] for line in lines}
    names -= {"container", "TERM"}  # Podman's
    assert names == {"PATH", "HOSTNAME", "HOME", "FROM_SPEC", "ONE", "x.y"}
    words = [
        "",
        "a b",
        "'",
        "\n",
        "$HOME",
        bytes(range(128, 256)).decode("utf-8", "surrogateescape"),
    ]
    said = system.run(["printf", "<%s>\\0", *words]).stdout
    assert said.split("\0")[:-1] == [f"<{word}>" for word in words]
    assert system.run(["no-such-command"]).returncode == 127
    assert system.run(["/etc/passwd"]).returncode == 126
    assert system.run(["sh", "-c", "kill -KILL $$"]).stderr == ""
    assert system.run(["grep", "SigIgn", "/proc/self/status"]).stdout.split()[1].strip("0") == ""
    with pytest.raises(SandboxTimeout):
        system.run(["sh", "-c", "setsid sleep 4321 & (sleep 4321 &) ; sleep 4321"], timeout=0.5)
    assert "sleep" not in system.run(["sh", "-c", "cat /proc/[0-9]*/comm"]).stdout
    assert system.changes() == Changes()


@pytest.fixture(scope="module")
def bare_image(runtime: Runtime, target: Target) -> Iterator[str]:
    """An image that holds one static program: it reads its stdin to the end."""
    name = f"tsuku/sandbox-test:bare-{RUN}"
    data = program(target.arch)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        member = tarfile.TarInfo("prog")
        member.size, member.mode = len(data), 0o755
        tar.addfile(member, io.BytesIO(data))
    out.seek(0)
    runtime.load_rootfs(out, name, target, {})
    yield name
    runtime.remove_image(name)


def test_no_shell_at_all(start: Callable[..., System], bare_image: str):
    system = start(image=bare_image)
    assert system.run(["/prog"], input=b"x" * 100000).returncode == 0
    assert system.run(["/prog"]).returncode == 0
    missing = system.run(["/bin/sh", "-c", "true"])
    assert (missing.returncode, missing.stdout) == (127, "")
    assert system.changes() == Changes()
    assert system.alive()
    assert system.stats().memory_peak > 0
    system.close()
    with pytest.raises(SandboxGone):
        system.run(["/prog"])

"""Image builds on a Docker-compatible engine: whole and tagged, or nothing is left."""

from __future__ import annotations

import contextlib
import io
import json
import re
import socket
import tarfile
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.errors import Blame, BuildFailed, RuntimeUnavailable
from pytest_sandbox.images.name import HASH_LABEL
from pytest_sandbox.runtimes.docker_images import find_image, split_reference
from pytest_sandbox.runtimes.owner import LABEL
from pytest_sandbox.runtimes.reaper import remove_container

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pytest_sandbox.runtimes.base import BuildRequest, ImageInfo, RuntimeInfo

_STEP: Final = re.compile(r"step (\d+/\d+)\s*: (.*)", re.IGNORECASE)
_RUNNING: Final = re.compile(r" ---> Running in ([0-9a-f]{12,64})")
_LAYER: Final = re.compile(r" ---> ([0-9a-f]{12,64})$")
_COLOUR: Final = re.compile("\x1b\\[[0-9;]*m")
_STATUS: Final = re.compile(r"returned a non-zero code: (\d+)|exit status (\d+)|exit code:? (\d+)")
_HASH: Final = re.compile(re.escape(HASH_LABEL) + r'="?([0-9a-f]{8,64})')
_LAST_LINES: Final = 20

# What a package manager says when the network, not the recipe, is at fault - and the other way
# round.
_HOST: Final = re.compile(
    r"certificate verif|x509|unable to get local issuer|self.signed certificate|"
    r"no space left on device|SSL certificate problem",
    re.IGNORECASE,
)
_RECIPE: Final = re.compile(
    r"unable to locate package|has no installation candidate|no package .* available|"
    r"no match for argument|target not found|unable to select packages|"
    r"no provider of .* found|unmet dependencies|NO_PUBKEY",
    re.IGNORECASE,
)
_UPSTREAM: Final = re.compile(
    r"404 +not found|error: 404|status code: 404|hash sum mismatch|does not have a release file",
    re.IGNORECASE,
)
_NETWORK: Final = re.compile(
    r"temporary failure resolving|could not resolve|couldn't resolve|name resolution|"
    r"connection refused|connection timed out|connection reset|network is unreachable|"
    r"timed out|timeout|no route to host|failed to connect|cannot initiate the connection|"
    r"temporary error|(?:error|code|status):? *(?:429|5\d\d)\b|too many requests|"
    r"bad gateway|service unavailable|cannot download repomd|failed retrieving file",
    re.IGNORECASE,
)


@dataclass(slots=True)
class _Progress:
    """What the engine said so far."""

    step: str = ""
    command: str = ""
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=400))
    step_lines: deque[str] = field(default_factory=lambda: deque(maxlen=400))
    containers: list[str] = field(default_factory=list)
    layers: list[str] = field(default_factory=list)
    image: str = ""
    error: str = ""
    code: int | None = None


def build(
    client: Any, info: RuntimeInfo, request: BuildRequest, say: Callable[[str], None]
) -> ImageInfo:
    """Build and tag; see the Runtime protocol. `say` gets a line for each step."""
    import docker.errors
    import requests.exceptions
    import urllib3.exceptions

    progress = _Progress()
    began = time.monotonic()
    over = threading.Event()
    try:
        with client.post(
            client._url("/build"),
            data=context(request.files),
            params=_parameters(request, info),
            headers={"Content-Type": "application/x-tar"},
            stream=True,
            timeout=None,
        ) as response:
            client._raise_for_status(response)
            clock = threading.Timer(
                max(request.timeout - (time.monotonic() - began), 0.01), _cut, [response, over]
            )
            clock.daemon = True
            clock.start()
            try:
                for event in client._stream_helper(response, decode=True):
                    _note(progress, event, say)
            finally:
                clock.cancel()
        if not progress.image and not progress.error and not over.is_set():
            progress.error = "the engine ended the build without a result"
    except docker.errors.APIError as exc:
        _clean(client, request, progress)
        msg = f"the engine refused to build {request.name}: {exc.explanation or exc}"
        raise BuildFailed(msg, blame=Blame.HOST) from exc
    except (
        requests.exceptions.RequestException,
        urllib3.exceptions.HTTPError,
        OSError,
        ValueError,
        AttributeError,
    ) as exc:
        if not over.is_set():
            _clean(client, request, progress)
            msg = f"the engine stopped answering while it built {request.name}: {exc}"
            raise RuntimeUnavailable(msg, next_step="look at the engine's own log") from exc
    except BaseException:
        _clean(client, request, progress)
        raise
    if progress.image and not progress.error:
        repository, tag = split_reference(request.name)
        client.tag(progress.image, repository, tag)
        found = find_image(client, request.name)
        if found is not None:
            return found
        progress.error = "the built image is gone"
    _clean(client, request, progress)
    raise _failure(request, progress, timed_out=over.is_set())


def context(files: Mapping[str, bytes]) -> bytes:
    """A tar of exactly these files, the same bytes for the same files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in sorted(files):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(files[name]), 0o644
            tar.addfile(member, io.BytesIO(files[name]))
    return out.getvalue()


def _parameters(request: BuildRequest, info: RuntimeInfo) -> dict[str, Any]:
    limits = request.limits
    cpus = min(limits.cpus, info.cpus)
    nofile: Any = {"Name": "nofile", "Soft": limits.nofile, "Hard": limits.nofile}
    if info.name == "podman":
        nofile = f"nofile={limits.nofile}:{limits.nofile}"
    return {
        "dockerfile": "Dockerfile",
        # Our names are the cache. The engine's own would serve week-old package indexes again.
        "nocache": True,
        "rm": True,
        "forcerm": True,
        "layers": False,  # Podman only: it would keep those of a build that is cut off
        "platform": f"{request.target.os}/{request.target.arch}",
        "networkmode": request.network,
        "buildargs": json.dumps(dict(request.build_args)),
        "labels": json.dumps(dict(request.labels)),
        "memory": limits.memory,
        "memswap": limits.memory,
        "cpuperiod": 100000,
        "cpuquota": int(cpus * 100000),
        "ulimits": json.dumps([nofile]),
    }


def _cut(response: Any, over: threading.Event) -> None:
    """The time is up: a closed connection cancels the build in the engine."""
    over.set()
    with contextlib.suppress(Exception):
        response.raw._fp.fp.raw._sock.shutdown(socket.SHUT_RDWR)


def _note(progress: _Progress, event: Mapping[str, Any], say: Callable[[str], None]) -> None:
    if event.get("error"):
        detail = event.get("errorDetail") or {}
        progress.error = str(event["error"])
        progress.code = detail.get("code")
        if progress.code is None and (found := _STATUS.search(progress.error)):
            progress.code = int(next(group for group in found.groups() if group))
        return
    aux = event.get("aux")
    if isinstance(aux, dict) and aux.get("ID"):
        progress.image = str(aux["ID"])
    for line in _COLOUR.sub("", str(event.get("stream") or "")).splitlines():
        if step := _STEP.fullmatch(line.rstrip()):
            progress.step, progress.command = step[1], step[2]
            progress.step_lines.clear()
            say(f"step {step[1]}: {step[2]}")
        elif running := _RUNNING.match(line):
            progress.containers.append(running[1])
        elif layer := _LAYER.match(line):
            progress.layers.append(layer[1])
        elif line.startswith("Successfully built ") and not progress.image:
            progress.image = line.split()[-1]
        elif line.strip() and not line.startswith(("Removing intermediate", " ---> ")):
            progress.lines.append(line.rstrip())
            progress.step_lines.append(line.rstrip())


def _failure(request: BuildRequest, progress: _Progress, *, timed_out: bool) -> BuildFailed:
    last = "\n".join(list(progress.step_lines or progress.lines)[-_LAST_LINES:])
    where = f"step {progress.step} " if progress.step else ""
    if timed_out:
        msg = f"the build of {request.name} took longer than {request.timeout:g} s"
        if where:
            msg += f", in {where}{progress.command[:120]}"
        return BuildFailed(
            msg,
            command=progress.command,
            blame=Blame.TIMEOUT,
            next_step="give it more time with --sandbox-build-timeout",
            details=last,
        )
    text = "\n".join((*progress.step_lines, progress.error))
    blame, reason = blame_of(text, progress.code)
    what = reason or progress.error
    msg = f"the build of {request.name} failed in {where}{progress.command[:120]}: {what[:300]}"
    return BuildFailed(
        msg,
        command=progress.command,
        returncode=progress.code,
        blame=blame,
        next_step=_NEXT.get(blame, ""),
        details=last or progress.error,
    )


_NEXT: Final = {
    Blame.RECIPE: "check the package names and repositories of the recipe",
    Blame.NETWORK: "check the network, the proxy and the mirrors, then run it again",
    Blame.UPSTREAM: "look whether the repository still has what the recipe asks for",
    Blame.HOST: "check the host's disk and its extra CA certificates",
    Blame.LIMIT: "raise the memory of builds with --sandbox-build-memory",
}


def blame_of(text: str, code: int | None = None) -> tuple[Blame, str]:
    """Whose fault a failed build is by what it printed, and the line that says so.

    The cause stands before its consequences: a mirror that does not resolve makes packages that
    cannot be located.
    """
    if code == 137:
        return Blame.LIMIT, "a process was killed (status 137): the build ran out of memory"
    for pattern, blame in (
        (_HOST, Blame.HOST),
        (_NETWORK, Blame.NETWORK),
        (_UPSTREAM, Blame.UPSTREAM),
        (_RECIPE, Blame.RECIPE),
    ):
        for line in text.splitlines():
            if pattern.search(line) and not line.lstrip().startswith(("Step ", "The command")):
                return blame, line.strip()
    return Blame.RECIPE, ""


def _clean(client: Any, request: BuildRequest, progress: _Progress) -> None:
    """Remove what a build that failed left: its containers, then its layers, last one first."""
    import docker.errors

    wanted = {HASH_LABEL: request.labels[HASH_LABEL]} if HASH_LABEL in request.labels else {}
    if found := _HASH.search(request.dockerfile):
        wanted = {HASH_LABEL: found[1]}
    with contextlib.suppress(docker.errors.APIError, OSError):
        # The engine itself ends the running step of a build whose client went away; this may take a
        # moment.
        for container in (*progress.containers[-1:], *_containers(client, wanted)):
            with contextlib.suppress(RuntimeUnavailable):
                remove_container(client, container)
        for layer in reversed(progress.layers[1:]):
            with contextlib.suppress(docker.errors.APIError):
                if not (client.inspect_image(layer).get("RepoTags") or ()):
                    client.remove_image(layer, force=False)
        if wanted:
            for entry in client.images(filters={"label": _as_filter(wanted), "dangling": True}):
                with contextlib.suppress(docker.errors.APIError):
                    client.remove_image(entry["Id"], force=False)


def _containers(client: Any, wanted: Mapping[str, str]) -> Iterator[str]:
    """Intermediate containers of this build; a sandbox, started from an image of this hash, is
    none.
    """
    if wanted:
        for entry in client.containers(all=True, filters={"label": _as_filter(wanted)}):
            if (entry.get("Labels") or {}).get(LABEL) != "1":
                yield entry["Id"]


def _as_filter(labels: Mapping[str, str]) -> list[str]:
    return [f"{key}={value}" for key, value in labels.items()]

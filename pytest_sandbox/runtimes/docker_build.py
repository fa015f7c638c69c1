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
from pytest_sandbox.runtimes.build_blame import COLOUR, KEPT_LINES, failed, took_too_long
from pytest_sandbox.runtimes.docker_images import find_image, split_reference
from pytest_sandbox.runtimes.owner import LABEL
from pytest_sandbox.runtimes.reaper import remove_container

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pytest_sandbox.runtimes.base import BuildRequest, ImageInfo, RuntimeInfo

_STEP: Final = re.compile(r"step (\d+/\d+)\s*: (.*)", re.IGNORECASE)
_RUNNING: Final = re.compile(r" ---> Running in ([0-9a-f]{12,64})")
_LAYER: Final = re.compile(r" ---> ([0-9a-f]{12,64})$")
_STATUS: Final = re.compile(r"returned a non-zero code: (\d+)|exit status (\d+)|exit code:? (\d+)")
_STDERR: Final = "\x1b[91m"
"""The colour that Docker gives to each piece of stderr."""
_HASH: Final = re.compile(re.escape(HASH_LABEL) + r'="?([0-9a-f]{8,64})')


@dataclass(slots=True)
class _Progress:
    """What the engine said so far."""

    step: str = ""
    command: str = ""
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=KEPT_LINES))
    step_lines: deque[str] = field(default_factory=lambda: deque(maxlen=KEPT_LINES))
    containers: list[str] = field(default_factory=list)
    layers: list[str] = field(default_factory=list)
    image: str = ""
    error: str = ""
    code: int | None = None
    rest: str = ""
    """A line of stderr that is not whole yet: programs write it in pieces."""


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
    stream = str(event.get("stream") or "")
    text = COLOUR.sub("", stream)
    if stream.startswith(_STDERR):
        whole, newline, rest = (progress.rest + text).rpartition("\n")
        progress.rest, text = rest, whole + newline
    for line in text.splitlines():
        if step := _STEP.fullmatch(line.rstrip()):
            progress.step, progress.command = step[1], step[2]
            progress.step_lines.clear()
            progress.rest = ""
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
    if progress.rest.strip():
        progress.lines.append(progress.rest.rstrip())
        progress.step_lines.append(progress.rest.rstrip())
    if timed_out:
        lines = progress.step_lines or progress.lines
        return took_too_long(
            request, step=progress.step, command=progress.command, lines=tuple(lines)
        )
    return failed(
        request,
        step=progress.step,
        command=progress.command,
        lines=tuple(progress.step_lines),
        before=tuple(progress.lines),
        error=progress.error,
        code=progress.code,
    )


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

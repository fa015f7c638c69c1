"""Which engines are on this machine, and which one a run uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_sandbox.errors import RuntimeUnavailable, SandboxError, UsageError
from pytest_sandbox.options import RUNTIMES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_sandbox.runtimes.base import Runtime, RuntimeInfo
    from pytest_sandbox.settings import Settings


@dataclass(frozen=True, slots=True)
class Candidate:
    """One engine that was looked for, for `pytest-sandbox doctor`.

    `info` is what it says of itself when it answers; else `problem` says what is wrong and
    `next_step` what to do.
    """

    runtime: str
    endpoint: str
    source: str
    info: RuntimeInfo | None = None
    problem: str = ""
    next_step: str = ""

    @property
    def found(self) -> bool:
        """Whether it can be used."""
        return self.info is not None


@dataclass(frozen=True, slots=True)
class Choice:
    """The runtime of a run, and in a few words why `auto` took it (empty for one by name)."""

    runtime: Runtime
    why: str = ""


def find_runtime(
    name: str, environ: Mapping[str, str], settings: Settings | None = None
) -> Runtime:
    """The runtime of that name, ready to use. See `choose_runtime`."""
    return choose_runtime(name, environ, settings).runtime


def choose_runtime(
    name: str, environ: Mapping[str, str], settings: Settings | None = None
) -> Choice:
    """The runtime of that name, ready to use, and why.

    `auto` takes oci where it works and sets limits, else Docker or Podman, else oci with weaker
    limits, unless `settings` refuse those. A URL like `unix:///run/docker.sock` names an endpoint.
    Raises RuntimeUnavailable, and UsageError for an unknown name.
    """
    if name in {"auto", ""}:
        return _first(environ, settings)
    runtime = _named(name, environ, settings)
    info = runtime.info()  # an engine that does not answer is told here
    if info.weak_limits and _refuses_weak(settings):
        runtime.close()
        raise _too_weak(info)
    return Choice(runtime)


def _named(name: str, environ: Mapping[str, str], settings: Settings | None) -> Runtime:
    if name == "fake":
        from pytest_sandbox.runtimes.fake import FakeRuntime

        return FakeRuntime()
    if name == "oci":
        from pytest_sandbox.runtimes.oci.elsewhere import need_linux

        need_linux()
        from pytest_sandbox.runtimes.oci.runtime import OciRuntime

        return OciRuntime(environ=environ, settings=settings)
    from pytest_sandbox.runtimes.docker import DockerRuntime

    if "://" in name:
        return DockerRuntime(name, environ=environ)
    if name == "docker":
        return DockerRuntime(environ=environ)
    if name == "podman":
        return DockerRuntime(podman_endpoint(environ), environ=environ)
    msg = f"unknown runtime {name!r}"
    raise UsageError(
        msg,
        next_step=f"use one of {', '.join(RUNTIMES)}, or a URL like unix:///run/docker.sock",
    )


def _first(environ: Mapping[str, str], settings: Settings | None) -> Choice:
    own: Runtime | None = None
    weak: RuntimeInfo | None = None
    try:
        own = _named("oci", environ, settings)
        info = own.info()
        if not info.weak_limits:
            return Choice(own, "no daemon is needed, and limits can be set")
        weak, why = info, f"without a daemon no control group sets limits: {info.weak_why}"
        step = _too_weak(info).next_step
    except SandboxError as wrong:
        why, step = f"without a daemon: {wrong.what}", wrong.next_step
    try:
        engine = _named("docker", environ, settings)
        engine.info()
    except RuntimeUnavailable as missing:
        if own is not None and weak is not None and not _refuses_weak(settings):
            names = ", ".join(weak.weak_limits)
            return Choice(own, f"weaker limits for {names}, but no Docker or Podman answers")
        if own is not None:
            own.close()
        msg = f"{missing.what}; and {why}"
        step = step or missing.next_step or "run pytest-sandbox doctor"
        raise RuntimeUnavailable(msg, next_step=step) from missing
    if own is not None:
        own.close()
    return Choice(engine, why)


def _refuses_weak(settings: Settings | None) -> bool:
    return settings is not None and settings.weak_limits == "refuse"


def _too_weak(info: RuntimeInfo) -> RuntimeUnavailable:
    names = ", ".join(info.weak_limits)
    msg = f"no control group can set limits for {names} here: {info.weak_why}"
    step = f"{info.weak_step}; or --sandbox-weak-limits=allow"
    return RuntimeUnavailable(msg, next_step=step.removeprefix("; or "))


def podman_endpoint(environ: Mapping[str, str]) -> str:
    """The address of Podman's own socket. Raises RuntimeUnavailable."""
    from pytest_sandbox.runtimes.docker_context import default_sockets

    places = [
        end for end in default_sockets(environ) if "podman" in end.url and end.socket is not None
    ]
    for endpoint in places:
        if endpoint.socket is not None and endpoint.socket.exists():
            return endpoint.url
    msg = f"no socket of Podman at {' or '.join(end.url for end in places)}"
    raise RuntimeUnavailable(
        msg, next_step="start it with `systemctl --user start podman.socket`, or set DOCKER_HOST"
    )


def survey(environ: Mapping[str, str], settings: Settings | None = None) -> list[Candidate]:
    """Look for every engine, the one that a run would use first; nothing is changed."""
    from pytest_sandbox.runtimes.docker_connect import connect
    from pytest_sandbox.runtimes.docker_context import candidates, default_sockets
    from pytest_sandbox.runtimes.docker_info import engine_info

    found: list[Candidate] = [_own(environ, settings)]
    try:
        endpoints = candidates(environ)
    except RuntimeUnavailable as exc:
        found.append(Candidate("docker", "", "context", None, exc.what, exc.next_step))
        endpoints = []
    known = {endpoint.url for endpoint in endpoints}
    endpoints += [end for end in default_sockets(environ) if end.url not in known]
    for endpoint in endpoints:
        kind = "podman" if "podman" in endpoint.url else "docker"
        try:
            client = connect(endpoint)
            try:
                info = engine_info(client, endpoint.url)
            finally:
                client.close()
        except RuntimeUnavailable as exc:
            found.append(
                Candidate(kind, endpoint.url, endpoint.source, None, exc.what, exc.next_step)
            )
            continue
        found.append(Candidate(info.name, endpoint.url, endpoint.source, info))
    return found


def _own(environ: Mapping[str, str], settings: Settings | None) -> Candidate:
    """The runtime without a daemon."""
    try:
        runtime = _named("oci", environ, settings)
        try:
            info = runtime.info()
        finally:
            runtime.close()
    except SandboxError as wrong:
        return Candidate("oci", "", "this machine", None, wrong.what, wrong.next_step)
    return Candidate("oci", info.endpoint, "this machine", info)

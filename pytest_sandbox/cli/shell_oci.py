"""A shell in a kept sandbox without a daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_sandbox.cli.containers import engine_errors, store_folder, streams_for

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_sandbox.oci.images import Image
    from pytest_sandbox.runtimes.base import ImageInfo
    from pytest_sandbox.runtimes.oci.containers.host import Host
    from pytest_sandbox.runtimes.oci.containers.request import Request
    from pytest_sandbox.settings import Settings


def enter(
    info: ImageInfo,
    script: str,
    env: Mapping[str, str],
    network: str,
    settings: Settings,
    *,
    terminal: bool,
) -> int:
    """Start a sandbox from a kept image and connect this process's streams; its exit status."""
    from pytest_sandbox.limits import PROFILES
    from pytest_sandbox.oci.platforms import Platform
    from pytest_sandbox.oci.reference import parse_reference
    from pytest_sandbox.runtimes.oci.containers.request import Request
    from pytest_sandbox.runtimes.oci.containers.start import Run
    from pytest_sandbox.runtimes.oci.foreground import Signals

    limits = PROFILES["build"]
    request = Request(
        image=parse_reference(info.name),
        platform=Platform("linux", info.arch),
        entrypoint=("/bin/sh", "-c", script),
        env=tuple(f"{name}={value}" for name, value in env.items()),
        cwd="/",
        hostname="sandbox",
        network=network,
        interactive=True,
        tty=terminal,
        remove=True,
        memory=limits.memory,
        pids=limits.pids,
        weak=True,
        engine=settings.oci_engine.removeprefix("auto"),
        snapshotter=settings.oci_snapshotter,
    )
    status = 0
    streams = streams_for(interactive=True, tty=terminal, whole=True)
    with engine_errors() as ended, Signals() as signals:
        try:
            with Run(store_folder(), request) as run:
                status = run.foreground(run.image(_gone), streams, signals)
        finally:
            streams.close()
    return ended.status or status


def _gone(host: Host, request: Request) -> Image:
    from pytest_sandbox.errors import ImageUnavailable

    msg = f"{request.image.familiar} is not in the store {host.store.root} any more"
    raise ImageUnavailable(msg, next_step="see what is kept: pytest-sandbox shell --list")

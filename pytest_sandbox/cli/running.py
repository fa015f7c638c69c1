"""What `pytest-sandbox run` does with its options."""

from __future__ import annotations

import gc
import os
import sys
from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.cli.containers import (
    command_words,
    engine_errors,
    put,
    say,
    store_folder,
    streams_for,
    variables,
)
from pytest_sandbox.cli.options import IMAGES
from pytest_sandbox.cli.project import chosen_settings
from pytest_sandbox.errors import SandboxError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_sandbox.oci.images import Image
    from pytest_sandbox.oci.pull import Policy
    from pytest_sandbox.runtimes.oci.containers.host import Host
    from pytest_sandbox.runtimes.oci.containers.request import Request
    from pytest_sandbox.runtimes.oci.order import MountOrder
    from pytest_sandbox.settings import Settings


_DEVICES: Final = frozenset(
    f"/dev/{name}"
    for name in (
        *("null", "zero", "full", "random", "urandom", "tty", "console", "ptmx", "pts"),
        *("fd", "stdin", "stdout", "stderr", "core"),
    )
)
"""What the engine makes in /dev (OCI runtime-spec, config-linux: default devices, symlinks)."""


def perform(options: dict[str, Any]) -> int:
    """Run the sandbox; the exit status. Raises UsageError."""
    settings = _settings(options)
    request = _request(options, settings)
    streams = None
    if not request.detached:
        streams = streams_for(interactive=request.interactive, tty=request.tty, whole=True)
    from pytest_sandbox.oci.supervisor.spawn import fork
    from pytest_sandbox.runtimes.oci.containers import JOBS

    # A fork, and before the rest is imported: a new interpreter would take longer, and the process
    # imports its own part beside this one.
    spawned = fork(JOBS)
    from pytest_sandbox.runtimes.oci.containers.start import Run
    from pytest_sandbox.runtimes.oci.foreground import Signals

    status = 0
    with engine_errors() as ended, Signals() as signals:
        try:
            with Run(store_folder(), request, spawned) as run:
                image = run.image(_Pull(settings, quiet=options["quiet"]))
                if streams is None:
                    identity = run.detached(image)
                    for note in run.notes:
                        say(note)
                    put(identity)
                else:
                    status = run.foreground(image, streams, signals)
        finally:
            if streams is not None:
                streams.close()
    return ended.status or status


class _Pull:
    """From the registry, with progress on stderr."""

    def __init__(self, settings: Settings | None, *, quiet: bool) -> None:
        self._settings = settings
        self._quiet = quiet

    def __call__(self, host: Host, request: Request) -> Image:
        gc.enable()
        from pytest_sandbox.oci.progress import display
        from pytest_sandbox.oci.pull import pull
        from pytest_sandbox.runtimes.oci.registry_settings import open_registry
        from pytest_sandbox.settings import Settings

        with (
            display(sys.stderr, quiet=self._quiet) as shown,
            open_registry(self._settings or Settings(), os.environ, shown.say) as registry,
        ):
            return pull(
                request.image,
                store=host.store,
                registry=registry,
                platform=request.platform,
                policy=request.pull,
                bounds=registry.bounds,
                display=shown,
            )


def _settings(options: dict[str, Any]) -> Settings | None:
    """The settings of images, engine and weaker limits; None where nobody set one, so that most
    calls do not pay for reading them. Raises UsageError.
    """
    keys = ("weak_limits", "pull", "offline", "oci_engine", *(option.key for option in IMAGES))
    return chosen_settings(options, keys)


def _pull_policy(settings: Settings | None) -> Policy:
    if settings is None:
        return "missing"
    found: Any = settings.pull
    return "never" if settings.offline else found


def _request(options: dict[str, Any], settings: Settings | None) -> Request:
    """What the options say. Raises UsageError."""
    from pytest_sandbox.oci.reference import parse_reference
    from pytest_sandbox.runtimes.oci.containers.folder import check_name
    from pytest_sandbox.runtimes.oci.containers.request import Request

    entrypoint = options["entrypoint"]
    network = _network(options["network"], options["ports"])
    return Request(
        image=parse_reference(options["image"]),
        command=command_words(options["command"]),
        platform=_platform(options["platform"]),
        pull=_pull_policy(settings),
        name=check_name(options["name"]) if options["name"] else "",
        detached=options["detached"],
        remove=options["remove"],
        interactive=options["interactive"],
        tty=options["tty"],
        env=variables(options["env"], options["env_files"]),
        user=options["user"],
        cwd=_folder(options["workdir"]),
        entrypoint=None if entrypoint is None else (entrypoint,) if entrypoint else (),
        hostname=options["hostname"],
        network=network,
        ports=_ports(options["ports"]),
        mounts=tuple(_mount(text) for text in options["volumes"]),
        tmpfs=dict(_tmpfs(text) for text in options["tmpfs"]),
        read_only=options["read_only"],
        init=options["init"],
        no_new_privileges=_no_new_privileges(options["security_opt"]),
        stop_signal=_signal(options["stop_signal"]),
        memory=_size("--memory", options["memory"]),
        cpus=_number("--cpus", options["cpus"], float),
        pids=_number("--pids", options["pids"], int),
        weak=options["weak"] or (settings is not None and settings.weak_limits == "allow"),
        engine=settings.oci_engine.removeprefix("auto") if settings else "",
        snapshotter=settings.oci_snapshotter if settings else "auto",
        timeout=_number("--timeout", options["timeout"], float),
    )


def _network(given: str | None, ports: Sequence[str]) -> str:
    if not ports:
        return given or "none"
    if given == "none":
        msg = "-p publishes a port, and --network none has none"
        raise UsageError(msg, next_step="leave --network out, or write --network bridge")
    if given == "host":
        msg = "-p publishes a port, and with --network host every port is the host's already"
        raise UsageError(msg, next_step="leave -p out, or write --network bridge")
    return "bridge"


def _ports(texts: Sequence[str]) -> tuple[str, ...]:
    if texts:
        from pytest_sandbox.oci.network.ports import parse_ports

        for text in texts:
            parse_ports(text)
    return tuple(texts)


def _platform(text: str | None) -> Any:
    if text is None:
        return None
    from pytest_sandbox.oci.platforms import parse_platform

    return parse_platform(text)


def _folder(text: str) -> str:
    if text and not text.startswith("/"):
        msg = f"-w {text!r} is not absolute"
        raise UsageError(msg, next_step="write it from / on")
    return text


def _mount(text: str) -> MountOrder:
    """SOURCE:TARGET[:ro|rw]; a relative source counts from the current folder."""
    from pytest_sandbox.oci.spec.mounts import check_target
    from pytest_sandbox.runtimes.oci.order import MountOrder

    rest, colon, mode = text.rpartition(":")
    if not (colon and mode in {"ro", "rw"}):
        rest, mode = text, "rw"
    source, _, target = rest.rpartition(":")
    if not source or not target:
        msg = f"-v {text!r} is no mount"
        raise UsageError(msg, next_step="write it as SOURCE:TARGET or SOURCE:TARGET:ro")
    if not target.startswith("/"):
        msg = f"-v {text!r}: the target {target!r} is not absolute"
        raise UsageError(msg, next_step="write SOURCE:TARGET[:ro] with a target from / on")
    try:
        path = os.path.abspath(source)  # noqa: PTH100 - keeps symlinks, as a mount does
    except FileNotFoundError:
        msg = f"-v {text!r}: the current folder was removed"
        raise UsageError(msg, next_step="name the source from / on") from None
    if not os.path.exists(path):  # noqa: PTH110
        msg = f"-v {text!r}: {path} does not exist"
        raise UsageError(msg, next_step="name a file or folder that is there")
    inside = check_target(target)
    if inside.startswith("/dev"):
        _check_devices(text, path, inside)
    return MountOrder(path, inside, read_only=mode == "ro")


def _check_devices(text: str, source: str, target: str) -> None:
    """What is mounted over /dev brings the devices; single ones are the sandbox's own."""
    if target == "/dev" and not os.path.exists(f"{source}/null"):  # noqa: PTH110
        msg = f"-v {text!r}: {source} has no devices, without which nothing runs"
        raise UsageError(msg, next_step="choose a folder of its own, like /mnt")
    if target in _DEVICES:
        msg = f"-v {text!r}: the sandbox makes {target} itself"
        raise UsageError(msg, next_step="choose another target")


def _tmpfs(text: str) -> tuple[str, int]:
    """TARGET[:size=SIZE]; half of the memory without a size, as the kernel has it."""
    from pytest_sandbox.oci.spec.mounts import check_target

    target, colon, rest = text.partition(":")
    if not colon:
        pages = os.sysconf("SC_PHYS_PAGES")
        return check_target(target), pages // 2 * os.sysconf("SC_PAGE_SIZE")
    name, _, size = rest.partition("=")
    if name != "size":
        msg = f"--tmpfs {text!r}: {rest!r} is no option of it"
        raise UsageError(msg, next_step="write TARGET or TARGET:size=64m")
    found = _size("--tmpfs", size)
    assert found is not None
    return check_target(target), found


def _no_new_privileges(given: Sequence[str]) -> bool:
    found = False
    for text in given:
        name, _, value = text.replace("=", ":", 1).partition(":")
        if name != "no-new-privileges" or value not in {"", "true", "false"}:
            msg = f"--security-opt {text!r} is not known"
            raise UsageError(msg, next_step="the one that there is: no-new-privileges")
        found = value != "false"
    return found


def _signal(text: str) -> str:
    if text:
        from pytest_sandbox.oci.spec.process import signal_number

        signal_number(text)
    return text


def _size(option: str, text: str | None) -> int | None:
    if text is None:
        return None
    from pytest_sandbox.limits import parse_size

    try:
        size = parse_size(text)
    except SandboxError:
        size = 0
    if size <= 0:
        msg = f"{option} {text!r} is no size"
        raise UsageError(msg, next_step="write bytes or a number with k, m or g, like 512m")
    return size


def _number(option: str, text: str | None, kind: type[int] | type[float]) -> Any:
    if text is None:
        return None
    try:
        value = kind(text)
    except ValueError:
        value = kind(0)
    if not 0 < value < 1e15:
        word = "a whole number" if kind is int else "a number"
        msg = f"{option} {text!r} is not {word} above zero"
        raise UsageError(msg, next_step=f"write {word} above zero")
    return value

"""Job of the supervisor: start one sandbox with a launcher.

A start is split: `create` makes the namespaces and waits, then the network and weaker limits are
put on, then `start` lets the process run. Everything that a start makes is below the supervisor's
room (a tmpfs that vanishes with it), in the sandbox's folder of the store, and in its cgroups.
"""

from __future__ import annotations

import contextlib
import os
from collections import OrderedDict
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pytest_sandbox.errors import RuntimeUnavailable
from pytest_sandbox.oci import etc_files, linux
from pytest_sandbox.oci.config import parse_image_config
from pytest_sandbox.oci.ids import Range
from pytest_sandbox.oci.snapshots.base import find_snapshotter
from pytest_sandbox.oci.spec import process, seccomp
from pytest_sandbox.oci.spec.generate import Overrides, generate
from pytest_sandbox.oci.spec.mounts import Bind
from pytest_sandbox.oci.spec.resources import ResourceLimits
from pytest_sandbox.oci.spec.root import Prepared, prepare_root, root_request
from pytest_sandbox.oci.supervisor.jobs import repeatable
from pytest_sandbox.runtimes import hold
from pytest_sandbox.runtimes.oci import weak
from pytest_sandbox.runtimes.oci.clearing import clear_away, discard, found_cgroups
from pytest_sandbox.runtimes.oci.launch_binds import clone_bind
from pytest_sandbox.runtimes.oci.launch_root import mount_root
from pytest_sandbox.runtimes.oci.launchers.base import Bundle
from pytest_sandbox.runtimes.oci.launchers.direct.launcher import DirectLauncher
from pytest_sandbox.runtimes.oci.launchers.engine import EngineLauncher
from pytest_sandbox.runtimes.oci.order import INTERPRETED, Order
from pytest_sandbox.runtimes.oci.programs import find_program

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_sandbox.oci.config import ImageConfig
    from pytest_sandbox.oci.supervisor import Call
    from pytest_sandbox.runtimes.oci.launchers.base import Launcher

INIT: Final = "/dev/.sandbox-init"
"""Where the init is inside a sandbox: below /dev it never shows in the image's file system."""
HOLD: Final = "/dev/.sandbox-hold"
_SHELL: Final = "/bin/sh"
_CLEAR: Final = "pytest_sandbox.runtimes.oci.clearing:clear"


def warm() -> None:
    """What every start needs is loaded once, in the supervisor."""
    seccomp.load()
    find_snapshotter("overlay")
    _counts_swap()


@repeatable
def start(call: Call) -> dict[str, Any]:
    """Start a sandbox. `args` is an Order; `fds` are its stdin, stdout and stderr, then the file of
    weaker counters if there are any.

    Says `console` with the terminal's descriptor where there is one. Gives `pid`, `env`, `created`
    (paths that were made for mounts), `shell` (the image has one), `ports`, `notes`. The process
    is watched with the caller's channel; at its end `clear` gives the Usage of its cgroup.
    Where the order asks for a check, `refused` alone is 126 or 127: nothing was started.

    `args` may be no more than `kind`, `id`, `folder` and `notes`; `unknown` alone says that this
    process has not had an order of that kind.
    """
    order = _order(call.args)
    if order is None:
        return {"unknown": True}
    launch = _Launch(call, order)
    try:
        told = launch.run()
        if "refused" in told:
            launch.undo()
        return told
    except BaseException:
        launch.undo()
        raise


def _order(args: Mapping[str, Any]) -> Order | None:
    if "config" in args:
        return Order.read(dict(args))
    known = _KNOWN.get(args["kind"])
    if known is None:
        return None
    return known.order._replace(
        id=args["id"], folder=args["folder"], notes=tuple(args["notes"])
    )


class _Known(NamedTuple):
    """What is the same for all starts of one kind; `order` is that of the first."""

    order: Order
    spec: dict[str, Any]
    prepared: Prepared
    shell: bool
    texts: Mapping[str, str]
    launcher: dict[str, Any]


_MOST_KNOWN: Final = 64
_KNOWN: OrderedDict[str, _Known] = OrderedDict()


class _Launch:
    """One start, step by step."""

    def __init__(self, call: Call, order: Order) -> None:
        self._call = call
        self._order = order
        self._place = Path(call.room, order.id)
        self._rootfs = self._place / "rootfs"
        self._launcher = _launcher(order, call.room)
        self._watched = False
        # What lies in a room of its own costs a mount or two.
        self._light = (
            self._launcher.brings_init and order.network != "bridge" and not order.mounts
        )
        self._tree = -1
        self._texts: dict[str, str] = {}
        self._notes: list[str] = []

    def run(self) -> dict[str, Any]:
        order, call = self._order, self._call
        if not self._light:
            self._make_place()
        self._tree = mount_root(call, order, self._rootfs, detached=self._light)
        if (known := self._known()) is not None:
            return self._start(*known[1:])
        places = self._place / "mounts"
        binds = [
            clone_bind(call, mount, places / str(index), self._notes)
            for index, mount in enumerate(order.mounts)
        ]
        etc = etc_files.engine_binds(str(self._place / "etc"))
        request = root_request(
            self._config,
            user=order.user,
            cwd=order.cwd,
            mounts=[*binds, *etc],
            tmpfs=tuple(order.tmpfs),
        )
        told = self._look(request)
        prepared: Prepared = told["prepared"]
        if told["refused"]:
            return {"refused": told["refused"], "program": told["program"]}
        spec = self._spec(prepared, binds, etc, told)
        if order.tty and all(order.size):
            rows, columns = order.size
            spec["process"]["consoleSize"] = {"height": rows, "width": columns}
        known = _Known(order, spec, prepared, told["shell"], self._texts, {})
        if self._light and order.kind:
            _KNOWN[order.kind] = known
            while len(_KNOWN) > _MOST_KNOWN:
                _KNOWN.popitem(last=False)
        return self._start(*known[1:])

    def _known(self) -> _Known | None:
        """What an earlier start of the same kind has found out."""
        if not (self._light and self._order.kind in _KNOWN):
            return None
        return _KNOWN[self._order.kind]

    def _start(
        self,
        spec: dict[str, Any],
        prepared: Prepared,
        shell: bool,
        texts: Mapping[str, str],
        known: dict[str, Any],
    ) -> dict[str, Any]:
        order, call = self._order, self._call
        user = prepared.user.to_json()
        bundle = Bundle(
            order.id,
            self._place,
            Path(order.folder),
            spec,
            tuple(call.fds[:3]),
            serve=order.hold,
            tree=self._tree,
            texts=texts,
            known=known,
            brief="config" not in call.args,
            user=user,
        )
        try:
            pid = self._launcher.create(call, bundle)
        finally:
            self._close_tree()
        ports: list[str] = []
        if order.network == "bridge":
            ports = self._network(pid)
        if order.limits.weak:
            spare = self._launcher.brings_init
            weak.impose(pid, order.limits, call.fds[3], spare=spare)
        call.watch(pid, after=(_CLEAR, self._rest()), name=order.id)
        self._watched = True
        status = self._launcher.start()
        if status and order.check:
            return {"refused": status, "program": spec["process"]["args"][0]}
        if status:
            what = "not there" if status == 127 else "not executable"
            msg = f"the sandbox cannot be started: {spec['process']['args'][0]} is {what}"
            raise RuntimeUnavailable(msg, next_step="run pytest-sandbox doctor")
        return {
            "pid": pid,
            "group": self._launcher.group,
            "env": spec["process"]["env"],
            "created": list(prepared.created),
            "shell": shell,
            "user": user,
            "ports": ports,
            "stop_signal": spec["annotations"].get("org.opencontainers.image.stopSignal", ""),
            "notes": self._notes,
        }

    def _rest(self) -> dict[str, Any]:
        order = self._order
        return {
            "id": order.id,
            "group": self._launcher.group,
            "folder": order.folder,
            "rootless": order.rootless,
            "cgroups_base": order.cgroups_base,
            "files": list(order.notes),
            "keep": order.keep,
            "record": order.record,
            "remove": order.remove,
        }

    def undo(self) -> None:
        """Nothing of a start that failed is left."""
        self._launcher.undo()
        self._close_tree()
        if not self._watched:
            with contextlib.suppress(Exception):
                clear_away(self._call.room, self._rest())
            if not self._order.upper:
                discard(Path(self._order.folder))
            for note in self._order.notes:  # the caller may be gone
                Path(note).unlink(missing_ok=True)

    # --- the root file system ---------------------------------------------------------------

    @cached_property
    def _config(self) -> ImageConfig:
        return parse_image_config(self._order.config)

    def _make_place(self) -> None:
        self._place.mkdir(mode=0o711)
        (self._place / "mounts").mkdir(mode=0o711)
        # Its own: the sandbox may write its /etc/hosts, and fill what that lies on.
        (self._place / "etc").mkdir(mode=0o711)
        options = "mode=0711,size=1m,nr_inodes=64"
        flags = linux.MS_NOSUID | linux.MS_NODEV
        linux.mount("tmpfs", self._place / "etc", "tmpfs", flags, options)

    def _close_tree(self) -> None:
        if self._tree >= 0:
            os.close(self._tree)
            self._tree = -1

    def _look(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Make what mounts need, and look at what is there."""
        order = self._order
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        if self._tree >= 0:
            root = os.open(".", flags, dir_fd=self._tree)
        else:
            root = os.open(self._rootfs, flags)
        owner = (order.uids[0][1], order.gids[0][1]) if self._call.ids is not None else None
        prepared = prepare_root(root, request, owner)
        told: dict[str, Any] = {"prepared": prepared}
        told["shell"] = find_program(root, _SHELL, "", prepared.user.uid) == 0
        told["refused"], told["program"] = 0, ""
        if order.check:
            told["refused"], told["program"] = self._check(root, prepared)
        os.close(root)
        return told

    def _check(self, root: int, prepared: Prepared) -> tuple[int, str]:
        """126 or 127 for a command that cannot be run, else 0; and its name."""
        order = self._order
        name = process.arguments(self._config, order.argv, order.entrypoint)[0]
        env = process.environment(self._config, order.env)
        path = next((entry[5:] for entry in env if entry.startswith("PATH=")), "")
        cwd = process.working_dir(self._config, order.cwd)
        if order.mounts:
            return 0, name  # it may be in one of them: the init, or the engine, will say
        return find_program(root, name, path, prepared.user.uid, cwd), name

    # --- our own files ----------------------------------------------------------------------

    def _own_binds(self, prepared: Prepared, told: Mapping[str, Any]) -> list[Bind]:
        """The engine's own files in front of the image."""
        order = self._order
        etc = self._place / "etc"
        network = order.network
        host = etc_files.host_resolv_conf()
        texts = {
            "/etc/hosts": etc_files.hosts_text(order.hostname),
            "/etc/hostname": etc_files.hostname_text(order.hostname),
            # The network's own servers are known when it is up: the text is written then.
            "/etc/resolv.conf": etc_files.resolv_text(
                "host" if network == "host" else "none", host
            ),
        }
        texts |= {path: etc_files.account_text(path, prepared.user) for path in prepared.missing}
        owner = None
        if self._call.ids is not None:
            owner = (order.uids[0][1], order.gids[0][1])
        if self._light:
            name = "{}/{}".format
            self._texts = {
                name(etc, path.rpartition("/")[2]): text for path, text in texts.items()
            }
        else:
            etc_files.write_files(etc, texts, owner)
        binds = etc_files.account_binds(str(etc), prepared.missing)
        if order.init and not self._launcher.brings_init:
            binds.append(Bind.of(order.init, INIT))
        if order.hold and not told["shell"] and not self._launcher.brings_init:
            program = self._place / "hold"
            program.write_bytes(hold.program(self._config.architecture or "amd64"))
            program.chmod(0o755)
            binds.append(Bind.of(program, HOLD))
        return binds

    # --- the spec ---------------------------------------------------------------------------

    def _spec(
        self, prepared: Prepared, binds: list[Bind], etc: list[Bind], told: Mapping[str, Any]
    ) -> dict[str, Any]:
        order = self._order
        main: tuple[str, ...] | None = None
        if order.hold:
            main = (_SHELL if told["shell"] else HOLD,)
        limits = order.limits
        hard = {
            name: None if name in limits.weak else getattr(limits, name)
            for name in ("memory", "cpus", "pids")
        }
        extra = weak.rlimits(limits)
        nofile = limits.nofile
        return generate(
            self._config,
            prepared,
            root=str(self._rootfs),
            uid_map=[Range(*entry) for entry in self._maps(order.uids)],
            gid_map=[Range(*entry) for entry in self._maps(order.gids)],
            overrides=Overrides(
                argv=() if main else order.argv,
                entrypoint=main or order.entrypoint,
                env=order.env,
                cwd="/" if order.hold else order.cwd,
                tty=order.tty,
                hostname=order.hostname,
                no_new_privileges=order.no_new_privileges,
                stop_signal=order.stop_signal,
            ),
            network=order.network,  # type: ignore[arg-type]
            limits=ResourceLimits(nofile=nofile, **hard),
            extra_rlimits=extra,
            mounts=binds,
            engine_files=[*etc, *self._own_binds(prepared, told)],
            tmpfs=order.tmpfs,
            read_only=order.read_only,
            init=(INIT, "-p", "SIGKILL", "--")
            if order.init and not self._launcher.brings_init
            else (),
            rootless=order.rootless,
            cgroups_path=found_cgroups().below(order.cgroups_base).paths(order.id).engine_path,
            swap=_counts_swap(),
        )

    def _maps(self, ranges: tuple[tuple[int, int, int], ...]) -> list[tuple[int, int, int]]:
        """As the engine writes them: an ordinary user's engine is inside the ids already."""
        if self._call.ids is not None:
            return list(ranges)
        return [(inside, inside, size) for inside, _, size in ranges]

    # --- the network ------------------------------------------------------------------------

    def _network(self, pid: int) -> list[str]:
        """The published ports. The network's keeper watches the sandbox and ends by itself, after
        its last words.
        """
        from pytest_sandbox.runtimes.oci import network

        attached = network.attach(pid, self._order.ports)
        etc = self._place / "etc"
        # In place: the files are bound already.
        (etc / "resolv.conf").write_text(attached.resolv_conf, encoding="utf-8")
        hosts = etc_files.hosts_text(self._order.hostname, attached.address)
        (etc / "hosts").write_text(hosts, encoding="utf-8")
        self._notes += attached.notes
        return [str(port) for port in attached.ports]


def _launcher(order: Order, room: str) -> Launcher:
    if order.launcher not in {"direct", INTERPRETED}:
        return EngineLauncher(order.engine, order.id, room, rootless=order.rootless)
    found = None if order.rootless else found_cgroups().below(order.cgroups_base)
    interpreted = order.launcher == INTERPRETED
    return DirectLauncher(found, Path(order.filters), interpreted=interpreted)


@cache
def _counts_swap() -> bool:
    """Whether the kernel accounts for swap (memory.memsw of v1; v2 always does where it can)."""
    memory = found_cgroups().controllers.get("memory")
    if memory is None or memory.version == 2:
        return True
    return (memory.mount / "memory.memsw.limit_in_bytes").exists()


__all__ = ["HOLD", "INIT", "start"]

"""A table of options, for click and for the quick reader alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Option(NamedTuple):
    """One option: `flags` as they are written, `key` in the answer, and `kind`: `flag`, `text` (the
    last one counts), `list` (all do) or `choice`. A flag may have an opposite in `off`.
    """

    key: str
    flags: tuple[str, ...]
    kind: str
    help: str
    metavar: str = ""
    choices: tuple[str, ...] = ()
    default: Any = None
    off: str = ""

    def unset(self) -> Any:
        """The value where it is not given."""
        if self.kind == "list":
            return ()
        return bool(self.default) if self.kind == "flag" else self.default


PROCESS: Final = (
    Option("env", ("-e", "--env"), "list", "Set a variable.", "NAME[=VALUE]"),
    Option("env_files", ("--env-file",), "list", "Set those of a file.", "FILE"),
    Option("user", ("-u", "--user"), "text", "Run as this user.", "USER[:GROUP]", default=""),
    Option("workdir", ("-w", "--workdir"), "text", "Run in this folder.", "FOLDER", default=""),
    Option("interactive", ("-i", "--interactive"), "flag", "Pass standard input on."),
    Option("tty", ("-t", "--tty"), "flag", "Give it a terminal."),
)
"""Those of `run` and `exec`."""

REGISTRIES: Final = (
    Option(
        "registry_mirror",
        ("--registry-mirror",),
        "list",
        "Ask this server before the registry.",
        "REGISTRY=URL",
    ),
    Option(
        "registry_insecure",
        ("--registry-insecure",),
        "list",
        "Ask this registry by plain http.",
        "HOST[:PORT]",
    ),
    Option(
        "registry_realm",
        ("--registry-realm",),
        "list",
        "Let this token server see the registry's credentials.",
        "REGISTRY=URL",
    ),
    Option(
        "registry_timeout",
        ("--registry-timeout",),
        "text",
        "How long a registry may be silent.",
        "SECONDS",
    ),
)
"""Those of verbs that ask registries; the keys are those of settings."""

STORE: Final = (
    Option(
        "image_bound",
        ("--image-bound",),
        "list",
        "Let an image bring more (or less), like layers=600.",
        "NAME=VALUE",
    ),
    Option(
        "oci_snapshotter",
        ("--snapshotter",),
        "choice",
        "How root file systems are made; default: what works.",
        choices=("auto", "overlay", "fuse-overlayfs", "reflink", "copy"),
    ),
)
"""Those of verbs that put images into the store."""

IMAGES: Final = (*REGISTRIES, *STORE)

RUN: Final = (
    Option("detached", ("-d", "--detach"), "flag", "Leave it running; print its id."),
    Option("remove", ("--rm",), "flag", "Leave nothing when it has ended."),
    Option("name", ("--name",), "text", "A name for the other verbs.", "NAME", default=""),
    Option(
        "ports",
        ("-p", "--publish"),
        "list",
        "Make a port reachable from the host, at 127.0.0.1 unless IP says otherwise.",
        "[[IP:]HOST:]PORT[/udp]",
    ),
    Option(
        "volumes",
        ("-v", "--volume"),
        "list",
        "Mount a folder or file of the host.",
        "SOURCE:TARGET[:ro]",
    ),
    *PROCESS,
    Option("entrypoint", ("--entrypoint",), "text", "In place of the image's.", "PROGRAM"),
    Option(
        "memory", ("-m", "--memory"), "text", "Limit of memory, swap included, like 512m.", "SIZE"
    ),
    Option("cpus", ("--cpus",), "text", "Limit of CPU time, in cores.", "N"),
    Option("pids", ("--pids", "--pids-limit"), "text", "Limit of processes.", "N"),
    Option(
        "weak",
        ("--weak-limits",),
        "flag",
        "Enforce limits by other means where no control group can set them.",
    ),
    Option(
        "network",
        ("--network",),
        "choice",
        "none; with -p: bridge.",
        choices=("none", "bridge", "host"),
    ),
    Option("platform", ("--platform",), "text", "Like linux/arm64; default: ours.", "OS/ARCH"),
    Option(
        "pull",
        ("--pull",),
        "choice",
        "When the image is pulled; default: missing.",
        choices=("always", "missing", "never"),
    ),
    Option("timeout", ("--timeout",), "text", "Kill it after so long; status 124.", "SECONDS"),
    Option("read_only", ("--read-only",), "flag", "The root file system cannot be written to."),
    Option("tmpfs", ("--tmpfs",), "list", "Memory as a folder.", "TARGET[:size=SIZE]"),
    Option(
        "hostname", ("--hostname",), "text", "Else the beginning of its id.", "NAME", default=""
    ),
    Option(
        "init", ("--init",), "flag", "A small init as process 1.", default=True, off="--no-init"
    ),
    Option("stop_signal", ("--stop-signal",), "text", "What `stop` sends.", "SIGNAL", default=""),
    Option("security_opt", ("--security-opt",), "list", "no-new-privileges", "OPTION"),
    Option("quiet", ("-q", "--quiet"), "flag", "Show no progress of a pull."),
    Option("oci_engine", ("--engine",), "text", "runc, crun, or the path of one.", "NAME"),
    *IMAGES,
)
"""Those of `run`."""


def with_options(table: Sequence[Option]) -> Callable[[Any], Any]:
    """Decorate a click command with a table."""
    import click

    def decorate(function: Any) -> Any:
        for option in reversed(table):
            flags = list(option.flags)
            words: dict[str, Any] = {"help": option.help}
            if option.kind == "flag":
                if option.off:
                    flags = [f"{flags[0]}/{option.off}"]
                words |= {"is_flag": True, "default": bool(option.default)}
                words |= {"show_default": bool(option.off)}
            else:
                words |= {"default": option.default, "multiple": option.kind == "list"}
                words |= {"metavar": option.metavar or None}
            if option.kind == "list":
                del words["default"]
            if option.choices:
                words |= {"type": click.Choice(option.choices), "show_default": True}
            function = click.option(*flags, option.key, **words)(function)
        return function

    return decorate

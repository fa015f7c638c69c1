"""The fast path's programs: shell text, as bytes, and what comes back. Pure; nothing here talks to
an engine.

One control shell is the sandbox's main process. It uses builtins alone, so that it works where
nothing can be forked any more. It starts worker shells; a worker runs one command at a time in its
foreground and reports `ID STATUS OOM PIDS` on its own stdout, which no command ever holds. The id
is random for each command: a command cannot know it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from pytest_sandbox.runtimes.processes import TICKS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FOLDER: Final = "/dev/.sandbox"
"""Where the FIFOs are inside the sandbox: below /dev they never show in the image's file system."""

_SAFE = re.compile(rb"[A-Za-z0-9_/.,:@%+=-]+")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Names that mean something to a shell: exporting them would change or stop it.
_SPECIAL = frozenset(
    {
        *("IFS", "OPTIND", "OPTARG", "PPID", "LINENO", "PWD", "OLDPWD", "PS1", "PS2", "PS4", "ENV"),
        *("UID", "EUID", "SHELLOPTS", "BASHOPTS", "SHLVL", "RANDOM", "SECONDS", "MAILCHECK", "_"),
        *("FUNCNAME", "HISTSIZE", "HISTFILE", "CDPATH", "POSIXLY_CORRECT", "GROUPS"),
    }
)
# Caught, not ignored: a command gets the default back, and `kill 0` in one does not end the shell.
_TRAP = b"trap : TERM INT HUP QUIT USR1 USR2 ALRM"

_COUNTERS: Final[Mapping[str, bytes]] = {
    "v1": (
        b"while read -r _pk _pv;do case $_pk in oom_kill)_pm=$_pv;;esac;done"
        b" </sys/fs/cgroup/memory/memory.oom_control;"
        b"read -r _pk _pp </sys/fs/cgroup/pids/pids.events;"
    ),
    "v2": (
        b"while read -r _pk _pv;do case $_pk in oom_kill)_pm=$_pv;;esac;done"
        b" </sys/fs/cgroup/memory.events;read -r _pk _pp </sys/fs/cgroup/pids.events;"
    ),
    "": b"",
}
_STATS: Final[Mapping[str, Sequence[str]]] = {
    "v1": (
        "memory/memory.max_usage_in_bytes",
        "cpuacct/cpuacct.usage",
        "blkio/blkio.throttle.io_service_bytes",
    ),
    "v2": ("memory.peak", "cpu.stat", "io.stat", "memory.current"),
    "": (),
}


def quote(data: bytes) -> bytes:
    """One word of a shell program that stands for exactly `data`. Raises ValueError for a NUL."""
    if _SAFE.fullmatch(data):
        return data
    if b"\0" in data:
        msg = "a NUL byte cannot be part of an argument, a variable or a path"
        raise ValueError(msg)
    return b"'" + data.replace(b"'", b"'\\''") + b"'"


def to_bytes(text: str) -> bytes:
    """UTF-8 with surrogateescape: what was read from a Result goes back as it was."""
    return text.encode("utf-8", "surrogateescape")


@dataclass(frozen=True, slots=True)
class Facts:
    """What the control shell said of itself and the sandbox."""

    pid: int = 0
    kind: str = ""
    """`plain` (dash, busybox: exports nothing of its own but PWD, OLDPWD and SHLVL) or `bash` (and
    others).
    """
    home: str = ""
    env: str = ""
    """The path of an `env` program, or empty."""
    setsid: str = ""
    cgroups: str = ""
    base: Mapping[str, str] = field(default_factory=dict)
    """The environment that every command of the container starts with."""


def probe(hello: str = "") -> bytes:
    """Ask the control shell what it is; with `hello`, write a line into the FIFO of that name.

    Opening for reading and writing never blocks, so an engine on another kernel cannot hang here.
    """
    fifo = f"{FOLDER}/{hello}".encode()
    knock = b"[ -p %s ] && echo hello 1<>%s;" % (fifo, fifo) if hello else b""
    return (
        _TRAP + b";unset _pm _pp _pk _pv _ps;read -r _pk _pv </proc/self/stat;echo pid $_pk;"
        b'case "${BASH_VERSION-}${ZSH_VERSION-}${KSH_VERSION-}" in '
        b'"")echo kind plain;;*)echo kind bash;;esac;'
        b'echo "home ${HOME-}";'
        b"if command -v env >/dev/null;then echo env;command -v env;fi;"
        b"if command -v setsid >/dev/null;then echo setsid;command -v setsid;fi;"
        b"if [ -r /sys/fs/cgroup/memory.events ];then echo cgroups v2;"
        b"elif [ -r /sys/fs/cgroup/memory/memory.oom_control ]&&"
        b"[ -r /sys/fs/cgroup/pids/pids.events ];"
        b"then echo cgroups v1;fi;" + knock
    )


def parse_probe(lines: Sequence[bytes], base: Mapping[str, str]) -> Facts:
    """Read the answer to `probe`; `base` is the container's configured environment."""
    values: dict[str, str] = {}
    words = iter(line.decode("utf-8", "surrogateescape") for line in lines)
    for line in words:
        key, _, value = line.partition(" ")
        if key in {"env", "setsid"}:
            value = next(words, "")
            value = value if value.startswith("/") else ""
        values[key] = value
    environment = dict(base)
    if "HOME" not in environment and values.get("home"):
        environment["HOME"] = values["home"]
    return Facts(
        pid=int(values.get("pid") or 0),
        kind=values.get("kind", ""),
        home=values.get("home", ""),
        env=values.get("env", ""),
        setsid=values.get("setsid", ""),
        cgroups=values.get("cgroups", ""),
        base=environment,
    )


def spawn_worker(facts: Facts, shell: str, number: int) -> bytes:
    """Start a worker that reads programs from FIFO `wN` and reports on FIFO `sN`.

    A background job of a shell ignores SIGINT and SIGQUIT, for ever and its children too. So the
    worker is started in the foreground of a subshell that it then kills: it becomes init's child,
    with all signals as they were. `command eval` keeps the control shell alive when nothing can be
    forked.
    """
    setsid = quote(to_bytes(facts.setsid)) + b" " if facts.setsid else b""
    program = (
        b"( ( read -r _pa _pb _pc _pd _pe </proc/self/stat;kill -KILL $_pd;"
        b"exec %s%s %s/w%d </dev/null >%s/s%d 2>/dev/null );: )"
    ) % (setsid, quote(to_bytes(shell)), FOLDER.encode(), number, FOLDER.encode(), number)
    return b"command eval %s;" % quote(program)


def greet_worker() -> bytes:
    """The first program of a worker: it says its pid."""
    return _TRAP + b";unset _pm _pp _pk _pv _ps;read -r _pk _pv </proc/self/stat;echo hello $_pk\n"


def has_odd_bytes(argv: Sequence[str]) -> bool:
    """Whether a word holds bytes that are no UTF-8: JSON cannot carry them."""
    return any("\udc80" <= ch <= "\udcff" for word in argv for ch in word)


def spelled(argv: Sequence[str], start: str = "exec", end: str = "") -> list[str]:
    """A command whose words the shell itself makes, byte by byte."""
    words = b" ".join(quote(to_bytes(word)) for word in argv)
    octal = "".join(f"\\{byte:03o}" for byte in words)
    return ["/bin/sh", "-c", f"eval \"{start} $(printf '{octal}'){end}\""]


def fits_fast_path(argv: Sequence[str], env: Mapping[str, str], facts: Facts) -> bool:
    """Whether the worker's shell can start this just as the engine would; else a real exec does."""
    if not argv[0] or argv[0].startswith("-") or "=" in argv[0]:
        return False
    if needs_env(env, facts):
        return bool(facts.env)
    return True


def needs_env(env: Mapping[str, str], facts: Facts) -> bool:
    """Whether the environment can only be made by `env -i`."""
    return (
        facts.kind != "plain"
        or any(_odd(name) for name in env)
        or any(_odd(name) for name in facts.base)
    )


def _odd(name: str) -> bool:
    return name in _SPECIAL or _IDENTIFIER.fullmatch(name) is None


@dataclass(frozen=True, slots=True)
class Streams:
    """Paths inside the sandbox; an empty `err` means that stderr goes where stdout goes."""

    out: str
    err: str = ""
    stdin: str = "/dev/null"


def command(
    token: str,
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: str,
    streams: Streams,
    facts: Facts,
) -> bytes:
    """The program that runs one command in a worker and reports `TOKEN STATUS OOM PIDS OOM PIDS`.

    The report begins on a line of its own, whatever else was written into the FIFO. STATUS is `D`
    when `cwd` cannot be entered. The counters are the cgroup's, before and after. Raises ValueError
    for a NUL.
    """
    words = b" ".join(quote(to_bytes(word)) for word in argv)
    if needs_env(env, facts):
        pairs = b" ".join(quote(to_bytes(f"{k}={v}")) for k, v in {**facts.base, **env}.items())
        inner = b"exec %s -i %s %s" % (quote(to_bytes(facts.env)), pairs, words)
    else:
        exports = b"".join(
            b"export %s=%s;" % (k.encode(), quote(to_bytes(v))) for k, v in env.items()
        )
        inner = b"unset PWD OLDPWD SHLVL;%sexec %s" % (exports, words)
    err = b"2>" + quote(to_bytes(streams.err)) if streams.err else b"2>&1"
    whole = b"( %s ) <%s >%s %s" % (
        inner,
        quote(to_bytes(streams.stdin)),
        quote(to_bytes(streams.out)),
        err,
    )
    counters = _COUNTERS[facts.cgroups]
    return (
        b"%s_pn=$_pm _po=$_pp;if cd -P -- %s;then command eval %s;_ps=$?;else _ps=D;fi;"
        b"%sprintf '\\n%%s\\n' \"%s $_ps ${_pn:-0} ${_po:-0} ${_pm:-0} ${_pp:-0}\"\n"
    ) % (counters, quote(to_bytes(cwd)), quote(whole), counters, token.encode())


@dataclass(frozen=True, slots=True)
class Counters:
    """The cgroup's record: processes that the memory limit killed, forks that the pids limit
    refused.
    """

    oom: int = 0
    pids: int = 0

    def __add__(self, other: Counters) -> Counters:
        return Counters(self.oom + other.oom, self.pids + other.pids)


@dataclass(frozen=True, slots=True)
class Report:
    """How a command ended; `status` is None when its cwd could not be entered."""

    status: int | None
    before: Counters
    after: Counters


def parse_report(line: bytes, token: str) -> Report | None:
    """Read a worker's line; None where it is not the one of `token`."""
    words = line.split()
    if len(words) != 6 or words[0] != token.encode():
        return None
    try:
        status = None if words[1] == b"D" else int(words[1])
        numbers = [int(word) for word in words[2:]]
    except ValueError:
        return None
    return Report(status, Counters(*numbers[:2]), Counters(*numbers[2:]))


def read_counters(facts: Facts) -> bytes:
    """Ask the control shell for the cgroup's counters and the sandbox's clock."""
    return (
        _COUNTERS[facts.cgroups]
        + b"read -r _pk _pv </proc/uptime;echo ${_pm:-0} ${_pp:-0} ${_pk:-0};"
    )


def parse_counters(lines: Sequence[bytes]) -> tuple[Counters, int]:
    """Read the answer to `read_counters`: the counters, and now in clock ticks since boot."""
    words = lines[0].split() if lines else []
    if len(words) != 3:
        return Counters(), 0
    return Counters(int(words[0]), int(words[1])), int(float(words[2]) * TICKS)


def dump_processes() -> bytes:
    """Print every `/proc/PID/stat` with builtins alone."""
    return b"for _pk in /proc/[0-9]*/stat;do read -r _pv <$_pk && printf '%s\\n' \"$_pv\";done;"


def send_signal(name: str, pids: Sequence[int]) -> bytes:
    """Signal each pid; one that is gone does not keep the others from it."""
    return b"".join(b"kill -%s %d;" % (name.encode(), pid) for pid in pids)


def read_stats(facts: Facts) -> bytes:
    """Print the cgroup's use of resources."""
    parts = [
        b"echo =%s;while read -r _pv;do printf '%%s\\n' \"$_pv\";done </sys/fs/cgroup/%s;"
        % (name.encode(), name.encode())
        for name in _STATS[facts.cgroups]
    ]
    return b"".join(parts)


def parse_stats(lines: Sequence[bytes]) -> tuple[int, float, int]:
    """(peak memory in bytes, CPU seconds, bytes written) from the answer to `read_stats`."""
    sections: dict[str, list[str]] = {}
    current: list[str] = []
    for line in lines:
        text = line.decode("ascii", "replace")
        if text.startswith("="):
            current = sections.setdefault(text[1:], [])
        else:
            current.append(text)
    peak = 0
    for name in ("memory/memory.max_usage_in_bytes", "memory.peak", "memory.current"):
        if not peak and sections.get(name):
            peak = int(sections[name][0])
    seconds = 0.0
    if sections.get("cpuacct/cpuacct.usage"):
        seconds = int(sections["cpuacct/cpuacct.usage"][0]) / 1e9
    for text in sections.get("cpu.stat", ()):
        if text.startswith("usage_usec "):
            seconds = int(text.split()[1]) / 1e6
    written = 0
    for text in sections.get("blkio/blkio.throttle.io_service_bytes", ()):
        words = text.split()
        if len(words) == 3 and words[1] == "Write":
            written += int(words[2])
    for text in sections.get("io.stat", ()):
        written += sum(int(word[7:]) for word in text.split() if word.startswith("wbytes="))
    return peak, seconds, written

"""How each family installs packages in an image, and how it is used with kept package lists.

The instruction is one text, whoever builds it. Where the builder mounts kept lists and archives at
`KEPT` it uses them; else it gets its lists itself and removes them again. What is mounted there is
no part of the image. See runtimes/oci/build_packages.py for who fills it, and why that can be
trusted.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

KEPT: Final = "/dev/.sandbox-packages"
"""Where kept package lists and archives are while an image is built: below /dev, which is never
part of an image.
"""
MARK: Final = "# packages:"
"""Begins the comment before an instruction that installs packages: their names follow."""

# Engines that give builds an unlimited number of open files make rpm close a billion of them.
_NOFILE: Final = "{ ulimit -n 65536 2>/dev/null || :; }"
_APT: Final = "-o APT::Update::Error-Mode=any -o Acquire::Retries=3 -o Acquire::Languages=none"
_APT_CONF: Final = f"{KEPT}/apt.conf"
"""For apt and all that asks apt: debconf does, too."""
_APT_DIRS: Final = (
    'Dir::State::Lists "$kept/lists";',
    'Dir::Cache "$kept";',
    'Dir::Cache::Archives "archives";',
    'Dir::Cache::srcpkgcache "srcpkgcache.bin";',
    'Dir::Cache::pkgcache "pkgcache.bin";',
)
_NOT_READ: Final = (
    "/usr/share/doc/*",
    "/usr/share/man/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/lintian/*",
    "/usr/share/groff/*",
)
"""What nobody reads in a sandbox: documentation and translations."""
_READ: Final = ("/usr/share/doc/*/copyright", "/usr/share/locale/locale.alias")
_ABOUT: Final = re.compile(
    r"man-db|mandoc|man-pages.*|manpages.*|info|texinfo|.+-(?:doc|docs|man|locale|lang)"
    r"|locales.*|glibc-(?:langpack|locale|all-langpacks).*|language-pack-.*"
)
"""Packages that are asked for because of their documentation or translations."""


def wants_documentation(packages: Iterable[str]) -> bool:
    """Whether documentation and translations are to be installed: a package is asked for that is
    of no use without (`man-db`, `*-doc`, `manpages`, `locales`, `*-lang`).
    """
    return any(_ABOUT.fullmatch(name) for name in packages)


@dataclass(frozen=True, slots=True)
class KeptPackages:
    """How a family's manager works with a folder of lists and archives at `KEPT`.

    `archive` matches the names of package archives in it; everything else is lists. `resolves`:
    `fetch` writes what each set consists of to `KEPT/resolved/NUMBER`, a line an archive: its
    name, its size and its digest.
    """

    archive: re.Pattern[str]
    refresh: str
    fetch: Callable[[Sequence[Sequence[str]]], str]
    resolves: bool = False
    lists: str = ""
    """Where the manager insists on its lists, so that `KEPT/lists` has to be there, too."""


def install_commands(
    family: str, packages: Sequence[str], *, documentation: bool = False
) -> list[str]:
    """Install the packages (sorted already): no questions, no recommendations, no stale indexes, no
    leftovers of the manager's cache; documentation and translations where they are asked for.
    """
    if not packages:
        return []
    names = " ".join(shlex.quote(name) for name in packages)
    told = names.replace("\n", " ")
    documentation = documentation or wants_documentation(packages)
    return [f"{MARK} {told}\n{_INSTALL[family](names, documentation)}"]


def layered_command(
    family: str, asked: Sequence[str], everything: Sequence[str], *, documentation: bool
) -> str:
    """Install all that `everything` names, whatever is there already, and have it look as if only
    `asked` had been asked for. For families that resolve (see KEEPING).
    """
    quoted = {name: shlex.quote(name) for name in everything}
    text = _INSTALL[family](" ".join(quoted.values()), documentation)
    auto = " ".join(word for name, word in quoted.items() if name not in set(asked))
    if auto:
        text += f" \\\n && apt-mark auto {auto} > /dev/null"
    return f"{MARK} {' '.join(quoted.values())}\n{text}"


def marked_packages(comment: str) -> tuple[str, ...]:
    """The packages that a comment before an instruction names; empty for any other comment."""
    if not comment.startswith(MARK):
        return ()
    return tuple(shlex.split(comment.removeprefix(MARK)))


# --- apt ------------------------------------------------------------------------------------------


def _apt(names: str, documentation: bool) -> str:
    # 101: services are not started by what installs them
    left_out = "" if documentation else " " + _apt_left_out()
    return (
        f"RUN export DEBIAN_FRONTEND=noninteractive kept={KEPT} \\\n"
        " && printf '#!/bin/sh\\nexit 101\\n' > /usr/sbin/policy-rc.d \\\n"
        " && chmod 0755 /usr/sbin/policy-rc.d \\\n"
        " && if [ -d $kept ]; then export APT_CONFIG=$kept/apt.conf; set -- -c $kept/quick.conf; "
        "\\\n"
        f"    else apt-get {_APT} update; fi \\\n"
        f' && apt-get {_APT} "$@"{left_out} -o Dpkg::Options::=--force-confold install -y '
        f"--no-install-recommends {names} \\\n"
        " && if [ ! -d $kept ]; then apt-get clean && rm -rf /var/lib/apt/lists/*; fi"
    )


def _apt_left_out() -> str:
    words = [f"--path-exclude={path}" for path in _NOT_READ]
    words += [f"--path-include={path}" for path in _READ]
    return " ".join(f"-o Dpkg::Options::={shlex.quote(word)}" for word in words)


def _apt_refresh() -> str:
    written = " ".join(shlex.quote(line.replace("$kept", KEPT)) for line in _APT_DIRS)
    return (
        f"mkdir -p {KEPT}/lists && printf '%s\\n' {written} > {_APT_CONF} "
        # debconf asks when a package is configured; here nobody answers before
        f"&& echo '#clear DPkg::Pre-Install-Pkgs;' > {KEPT}/quick.conf "
        f"&& APT_CONFIG={_APT_CONF} apt-get {_APT} update"
    )


def _apt_fetch(sets: Sequence[Sequence[str]]) -> str:
    """What each set needs on this system, into resolved/; then all that is missing, at once."""
    lines = [
        f"cd {KEPT} && mkdir -p archives/partial resolved none/partial || exit 1",
        f"export APT_CONFIG={_APT_CONF}",
        "uris() { number=$1; shift;",
        f"  apt-get {_APT} -o Dir::Cache::Archives=none install -y --print-uris \\",
        '  --no-install-recommends "$@" >resolved/$number.all 2>/dev/null && {',
        "  echo '# resolved'",
        "  sed -n \"s/^'[^']*' \\([^ ]*\\) \\([0-9]*\\) \\(.*\\)$/\\1 \\2 \\3/p\" \\",
        "  resolved/$number.all; } >resolved/$number; }",
    ]
    for number, packages in enumerate(sets):
        names = " ".join(shlex.quote(name) for name in packages)
        # two at a time: each reads the same lists, and thinks for a third of a second
        lines.append(f"uris {number} {names}{' &' if number % 2 == 0 else '; wait'}")
    lines += [
        "wait; rm -rf resolved/*.all none",
        "cd archives && set --",
        'for word in $(cat ../resolved/* 2>/dev/null | grep -v "^#" | cut -d" " -f1 | sort -u); do',
        '  [ -e "$word" ] && continue',
        # NAME_VERSION_ARCH.deb, with %3a for the colon of an epoch
        "  pair='s/%3a/:/g; s/^\\(.*\\)_\\(.*\\)_all$/\\1=\\2/;'",
        '  pair="$pair s/^\\(.*\\)_\\(.*\\)_\\([^_]*\\)$/\\1:\\3=\\2/"',
        '  word=$(printf %s "${word%.deb}" | sed "$pair")',
        '  set -- "$@" "$word"',
        "done",
        f'[ $# -eq 0 ] || apt-get {_APT} download "$@" || :',
        "rm -rf partial",
    ]
    return "\n".join(lines)


# --- the others -----------------------------------------------------------------------------------


def _each(command: str) -> Callable[[Sequence[Sequence[str]]], str]:
    """A fetch that runs one command a set; a set that cannot be had is for its build to tell of."""

    def fetch(sets: Sequence[Sequence[str]]) -> str:
        words = (" ".join(shlex.quote(name) for name in packages) for packages in sets)
        return "\n".join([*(f"{{ {command} {names}; }} || :" for names in words), ":"])

    return fetch


_DNF: Final = (
    "--setopt=install_weak_deps=False --setopt=retries=5 --setopt=max_parallel_downloads=10"
)
_DNF_KEPT: Final = f"--setopt=cachedir={KEPT}/dnf --setopt=keepcache=True"


def _dnf(names: str, documentation: bool) -> str:
    options = f"{_DNF}{'' if documentation else ' --setopt=tsflags=nodocs'}"
    return (
        f"RUN {_NOFILE}; if [ -d {KEPT} ]; then set -- {_DNF_KEPT} "
        "--setopt=metadata_expire=-1; else set --; fi \\\n"
        f' && dnf -y {options} "$@" install {names} \\\n'
        f" && if [ ! -d {KEPT} ]; then dnf clean all; fi"
    )


def _pacman(names: str, documentation: bool) -> str:
    # pacman's own sandbox needs Landlock, which an image build often lacks; the build is one
    left_out = " ".join(path.lstrip("/") for path in _NOT_READ)
    left_out += " " + " ".join(f"!{path.lstrip('/')}" for path in _READ)
    if documentation:
        settings = "[options]\\nInclude = /etc/pacman.conf\\n"
    else:
        settings = f"[options]\\nNoExtract = {left_out}\\nInclude = /etc/pacman.conf\\n"
    return (
        "RUN sed -i 's/^#DisableSandbox/DisableSandbox/' /etc/pacman.conf \\\n"
        f" && printf '{settings}' > /tmp/pacman.conf && {_NOFILE} \\\n"
        f" && if [ -d {KEPT} ]; then set -- -Su --cachedir {KEPT}/pkg; else set -- -Syu; fi \\\n"
        f' && pacman --config /tmp/pacman.conf "$@" --noconfirm --needed {names} \\\n'
        " && rm -f /tmp/pacman.conf \\\n"
        f" && if [ ! -d {KEPT} ]; then rm -rf /var/cache/pacman/pkg/*; fi"
    )


def _apk(names: str, documentation: bool) -> str:
    del documentation  # alpine has it in packages of its own
    return (
        f"RUN if [ -d {KEPT} ]; then set -- --cache-dir {KEPT}/apk --cache-max-age 2880; \\\n"
        "    else set -- --no-cache; fi \\\n"
        f' && apk add "$@" --no-progress {names}'
    )


def _zypper(names: str, documentation: bool) -> str:
    # 102 and 103 ask for a reboot or a restart of zypper; 106 skipped a repository and 107 lost a
    # package's script: such an image would be half of one.
    docs = "no" if documentation else "yes"
    return (
        f"RUN {_NOFILE}; if [ -d {KEPT} ]; then set -- --cache-dir {KEPT}/zypp --no-refresh; \\\n"
        "    else zypper --non-interactive refresh && set -- ; fi \\\n"
        " && { cat /etc/zypp/zypp.conf 2>/dev/null || echo '[main]'; \\\n"
        f"    echo 'rpm.install.excludedocs = {docs}'; }} > /tmp/zypp.conf \\\n"
        ' && { ZYPP_CONF=/tmp/zypp.conf zypper --non-interactive "$@" install --no-recommends '
        f"{names}; status=$?; rm -f /tmp/zypp.conf; \\\n"
        "    case $status in 0|102|103) ;; \\\n"
        "    106) echo 'zypper skipped a repository' >&2; exit $status ;; \\\n"
        "    107) echo 'a script of a package failed' >&2; exit $status ;; \\\n"
        f"    *) exit $status ;; esac; }} && if [ ! -d {KEPT} ]; then zypper clean --all; fi"
    )


_INSTALL: Final[dict[str, Callable[[str, bool], str]]] = {
    "debian": _apt,
    "rhel": _dnf,
    "arch": _pacman,
    "alpine": _apk,
    "suse": _zypper,
}

KEEPING: Final = {
    "debian": KeptPackages(
        archive=re.compile(r"[^/]+\.deb"),
        refresh=_apt_refresh(),
        fetch=_apt_fetch,
        resolves=True,
    ),
    "rhel": KeptPackages(
        archive=re.compile(r"[^/]+\.rpm"),
        refresh=f"{_NOFILE}; dnf -y {_DNF} {_DNF_KEPT} --refresh makecache",
        fetch=_each(
            f"{_NOFILE}; dnf -y {_DNF} {_DNF_KEPT} --setopt=metadata_expire=-1 "
            "install --downloadonly"
        ),
    ),
    "arch": KeptPackages(
        archive=re.compile(r"[^/]+\.pkg\.tar\.[a-z0-9]+(?:\.sig)?"),
        refresh="sed -i 's/^#DisableSandbox/DisableSandbox/' /etc/pacman.conf && pacman -Sy",
        fetch=_each(
            "sed -i 's/^#DisableSandbox/DisableSandbox/' /etc/pacman.conf; "
            f"pacman -Suw --cachedir {KEPT}/pkg --noconfirm --needed"
        ),
        lists="/var/lib/pacman/sync",
    ),
    "alpine": KeptPackages(
        archive=re.compile(r"[^/]+\.apk"),
        refresh=f"mkdir -p {KEPT}/apk && apk update --cache-dir {KEPT}/apk --no-progress",
        # Its only way to fetch what a set needs is to install it: without any script, into a
        # system that is thrown away.
        fetch=_each(
            f"apk add --cache-dir {KEPT}/apk --cache-max-age 2880 --no-scripts --no-progress"
        ),
    ),
    "suse": KeptPackages(
        archive=re.compile(r"[^/]+\.rpm"),
        refresh=f"zypper --non-interactive --cache-dir {KEPT}/zypp refresh --force",
        fetch=_each(
            f"zypper --non-interactive --cache-dir {KEPT}/zypp --no-refresh install "
            "--no-recommends --download-only"
        ),
    ),
}
"""Family -> how its packages are kept."""

__all__ = ["KEEPING", "KEPT", "MARK", "KeptPackages", "install_commands", "marked_packages"]

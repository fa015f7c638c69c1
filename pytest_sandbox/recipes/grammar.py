"""Strict grammars for the names of a recipe that reach a package manager, shell or Dockerfile.

Each `check_*` returns its value or raises GrammarError (a ValueError) that says what was expected.
A value with a template (`python{version}`) is checked with the placeholder taken as a digit:
whoever expands templates checks again.
"""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_sandbox.recipes.findings import KeyPath

RECIPE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+@-]*")
PLACEHOLDER: Final = re.compile(r"\{[A-Za-z_][A-Za-z0-9_.-]*\}")

_RPM = r"@?[A-Za-z0-9_][A-Za-z0-9._+~^:-]*"
_PACKAGES: Final[Mapping[str, tuple[re.Pattern[str], str]]] = {
    # Debian Policy 5.6.1 and 5.6.12; a trailing "-" would tell apt to remove the package
    "apt": (
        re.compile(
            r"[a-z0-9](?:[a-z0-9+.-]*[a-z0-9+.])?(?::[a-z0-9-]+)?(?:=[A-Za-z0-9][A-Za-z0-9.+~:-]*)?"
        ),
        "a Debian package name, like libssl-dev, with =version allowed",
    ),
    "dnf": (re.compile(_RPM), "an RPM package name or @group, like gcc-c++"),
    "zypper": (
        re.compile(rf"{_RPM}(?:=[A-Za-z0-9][A-Za-z0-9._+~^:-]*)?"),
        "an RPM package name, like gcc-c++, with =version allowed",
    ),
    "pacman": (
        re.compile(r"(?:[a-z0-9-]+/)?[A-Za-z0-9@_+][A-Za-z0-9@._+-]*"),
        "an Arch package name, like base-devel",
    ),
    "apk": (
        re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*(?:[=~][0-9][A-Za-z0-9._-]*)?"),
        "an Alpine package name, like libc-dev, with =version or ~version allowed",
    ),
    "brew": (
        re.compile(r"(?:[A-Za-z0-9_-]+/[A-Za-z0-9_-]+/)?[A-Za-z0-9][A-Za-z0-9@._+-]*"),
        "a Homebrew formula or cask name, with owner/tap/ in front allowed",
    ),
}
_COMMAND: Final = re.compile(r"(?!-)[\w.+=@:%,-]+")
_SYSTEM_COMMAND: Final = re.compile(r"(?!-)[A-Za-z0-9._+-]+")
_GROUP: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,31}")
_SERVICE: Final = re.compile(r"(?!-)[A-Za-z0-9_@.-]+")
_PPA: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]*/[A-Za-z0-9][A-Za-z0-9.+-]*")
_TAP: Final = re.compile(r"[A-Za-z0-9_-]+/[A-Za-z0-9_-]+")
_SHA256: Final = re.compile(r"[0-9a-fA-F]{64}")
_SUITE: Final = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9._+/-]*|\.)/?")
_URL: Final = re.compile(r"https?://[A-Za-z0-9._~:/?#@!&()*+,;=%\[\]-]+")
_DNF_VARIABLE: Final = re.compile(r"\$(?:releasever|basearch|arch)(?![a-z])")
_VERSION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~:-]*")


class GrammarError(ValueError):
    """A value that its grammar refuses. `where` is the key path below the step."""

    def __init__(self, message: str, where: KeyPath = ()) -> None:
        super().__init__(message)
        self.where = where


def _refuse(value: object, expected: str) -> GrammarError:
    return GrammarError(f"{value!r} is not {expected}")


def _match(value: object, pattern: re.Pattern[str], expected: str) -> str:
    if isinstance(value, str) and pattern.fullmatch(PLACEHOLDER.sub("0", value)):
        return value
    raise _refuse(value, expected)


def check_recipe_name(value: object) -> str:
    """metadata.name: it becomes part of paths."""
    if isinstance(value, str) and RECIPE_NAME.fullmatch(value):
        return value
    raise _refuse(value, "a recipe name: letters, digits and ._+@-, first a letter or digit")


def check_package(manager: str, name: object) -> str:
    """A package as `manager` (apt, dnf, pacman, apk, zypper, brew) takes it."""
    if manager not in _PACKAGES:
        raise _refuse(manager, f"a package manager; use one of {', '.join(_PACKAGES)}")
    pattern, expected = _PACKAGES[manager]
    return _match(name, pattern, expected)


def bare_package(manager: str, name: str) -> str:
    """The name alone, as the manager's own query takes it: without a version or repository."""
    if manager == "pacman":
        return name.rpartition("/")[2]
    return re.split("[=~]" if manager == "apk" else "=", name, maxsplit=1)[0]


def check_command(value: object) -> str:
    """The name of a command on PATH, as require_command takes it."""
    return _match(
        value, _COMMAND, "a command name: no path, blanks or shell signs, and no leading dash"
    )


def check_system_command(value: object) -> str:
    """The name of a command as require_system takes it (stricter)."""
    return _match(value, _SYSTEM_COMMAND, "a command name: letters, digits and ._+- only")


def check_group(value: object) -> str:
    """A group of the system."""
    return _match(value, _GROUP, "a group name: letters, digits, _ and -, at most 32")


def check_service(value: object) -> str:
    """A service of the system."""
    return _match(value, _SERVICE, "a service name: letters, digits and _@.-, no leading dash")


def check_ppa(value: object) -> str:
    """A Launchpad archive, `owner/name`."""
    return _match(value, _PPA, "a PPA, like owner/name")


def check_tap(value: object) -> str:
    """A Homebrew tap, `owner/name`."""
    return _match(value, _TAP, "a tap, like owner/name")


def check_sha256(value: object) -> str:
    """A SHA-256 checksum in hex."""
    return _match(value, _SHA256, "a SHA-256 checksum: 64 hex digits")


def check_url(value: object) -> str:
    """An https URL, or http to this machine's loopback; no quotes, blanks, `$` or backslashes."""
    text = _match(value, _URL, "a plain https URL")
    try:
        parts = urlsplit(PLACEHOLDER.sub("0", text))
        host = parts.hostname or ""
        _ = parts.port
    except ValueError:
        raise _refuse(value, "a plain https URL") from None
    if not host or parts.username is not None:
        raise _refuse(value, "an https URL with a host and without a user")
    if parts.scheme == "http" and not is_loopback(host):
        raise _refuse(value, "an https URL (plain http is for loopback only)")
    return text


def is_loopback(host: str) -> bool:
    """Whether a URL's host is this machine: localhost, 127.0.0.0/8 or ::1."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def check_dnf_url(value: object) -> str:
    """check_url, with dnf's own `$releasever`, `$basearch` and `$arch` allowed."""
    if isinstance(value, str):
        check_url(_DNF_VARIABLE.sub("0", value))
        return value
    return check_url(value)


def check_apt_source(value: object) -> str:
    """What stands after `deb` in a source list: `URL`, `URL SUITE/` or `URL SUITE COMPONENT...`."""
    words = value.split(" ") if isinstance(value, str) else []
    if not words:
        return check_url(value)
    check_url(words[0])
    for word in words[1:]:
        check_suite(word)
    if len(words) == 2 and not words[1].endswith("/"):
        raise _refuse(value, "`URL SUITE COMPONENT...` (a suite without components ends in /)")
    return " ".join(words)


def check_suite(value: object) -> str:
    """A suite or component of an apt repository."""
    return _match(value, _SUITE, "a suite or component of an apt repository")


def check_version(value: object) -> str:
    """A version to compare with."""
    return _match(value, _VERSION, "a version, like 1.2.3")


def check_flag(value: object) -> str:
    """version_flag: one argument, passed without a shell."""
    if isinstance(value, str) and value and value.isprintable():
        return value
    raise _refuse(value, "one argument, like --version")


def check_regex(value: object) -> str:
    """version_regex: its first group is the version."""
    if not isinstance(value, str):
        raise _refuse(value, "a regular expression")
    try:
        groups = re.compile(value).groups
    except (re.error, RecursionError, OverflowError) as wrong:
        msg = f"{value!r} is not a regular expression: {wrong}"
        raise GrammarError(msg) from None
    if not groups:
        raise _refuse(value, "a regular expression with a group for the version, like ([0-9.]+)")
    return value


def check_text(value: object) -> str:
    """manual's text: any text."""
    if isinstance(value, str):
        return value
    raise _refuse(value, "a text")


_ONE: Final[Mapping[tuple[str, str], Callable[[object], str]]] = {
    ("apt_repo", "url"): check_apt_source,
    ("apt_repo", "key_url"): check_url,
    ("apt_repo", "key_sha256"): check_sha256,
    ("apt_repo", "suite"): check_suite,
    ("apt_ppa", "ppa"): check_ppa,
    ("dnf_repo", "url"): check_dnf_url,
    ("dnf_repo", "key_url"): check_url,
    ("dnf_repo", "key_sha256"): check_sha256,
    ("dnf_repo", "gpgkey"): check_dnf_url,
    ("brew_install", "tap"): check_tap,
    ("brew_cask", "tap"): check_tap,
    ("group_add", "group"): check_group,
    ("service_enable", "service"): check_service,
    ("service_start", "service"): check_service,
    ("require_command", "command"): check_command,
    ("require_system", "command"): check_system_command,
    ("manual", "text"): check_text,
    **{
        (action, key): check
        for action in ("require_command", "require_system")
        for key, check in (
            ("min_version", check_version),
            ("version_flag", check_flag),
            ("version_regex", check_regex),
        )
    },
}
_CHECKS: Final[Mapping[str, tuple[tuple[str, Callable[[object], str]], ...]]] = {
    action: tuple((key, check) for (owner, key), check in _ONE.items() if owner == action)
    for action in {owner for owner, _ in _ONE}
}
_MANAGER_OF: Final = {
    **{f"{manager}_install": manager for manager in _PACKAGES},
    "brew_cask": "brew",
}


def check_params(action: str, params: Mapping[str, Any]) -> None:
    """Hold a system action's parameters against their grammars; others are not looked at.

    Absent, empty and wholly mistyped parameters pass (lint reports them, and the action then has
    nothing to do); a value that is there and breaks its grammar raises GrammarError with `where`.
    """
    manager = _MANAGER_OF.get(action)
    if manager is not None:
        check_packages(manager, params.get("packages"), ("packages",))
    for key, check in _CHECKS.get(action, ()):
        value = params.get(key)
        if value is None or value == "":
            continue
        try:
            check(value)
        except GrammarError as wrong:
            raise GrammarError(str(wrong), (key,)) from None
    if action == "apt_repo":
        components = params.get("components")
        for index, item in enumerate(components if isinstance(components, (list, tuple)) else ()):
            try:
                check_suite(item)
            except GrammarError as wrong:
                raise GrammarError(str(wrong), ("components", index)) from None


def check_packages(manager: str, packages: object, where: KeyPath) -> None:
    """Check every string of a package list; whatever is no list of strings is lint's to report."""
    if not isinstance(packages, (list, tuple)):
        return
    for index, name in enumerate(packages):
        if isinstance(name, str):
            try:
                check_package(manager, name)
            except GrammarError as wrong:
                raise GrammarError(str(wrong), (*where, index)) from None

"""The host's proxy settings, and what of the host's environment must never be shown."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

PROXY_VARIABLES: Final = ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy")
REDACTED: Final = "[REDACTED]"

_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|KEY|CREDENTIAL", re.IGNORECASE)
_SHORTEST: Final = 8
_USERINFO = re.compile(r"(?<=://)[^\s/@:]+:[^\s/@]+(?=@)")


def proxy_environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The proxy variables that are set, each in lower and upper case (programs differ in which they
    read).

    The lower-case form wins where both are set, as in curl and requests.
    """
    environ = os.environ if environ is None else environ
    found = {}
    for name in PROXY_VARIABLES:
        value = environ.get(name) or environ.get(name.upper(), "")
        if value:
            found[name] = found[name.upper()] = value
    return found


def secrets(environ: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """What must not appear in reports: credentials of proxies, and the values (8 characters or
    more) of variables whose names say TOKEN, SECRET, PASSWORD, PASSWD, KEY or CREDENTIAL. Longest
    first."""
    environ = os.environ if environ is None else environ
    found: set[str] = set()
    for name, value in environ.items():
        if _SECRET_NAME.search(name) and not _harmless(value):
            found.update(line for line in (value, *value.splitlines()) if len(line) >= _SHORTEST)
    for value in proxy_environment(environ).values():
        found |= _credentials(value)
    return tuple(sorted(found, key=lambda text: (-len(text), text)))


def masked(text: str, hidden: Iterable[str] | None = None) -> str:
    """`text` with every secret, and every `user:password@` of a URL, replaced by [REDACTED]."""
    for secret in secrets() if hidden is None else hidden:
        if secret in text:
            text = text.replace(secret, REDACTED)
    return _USERINFO.sub(REDACTED, text) if "://" in text else text


def _harmless(value: str) -> bool:
    # A path or a small word under a name like SSH_KEY_PATH or KEYRING is no secret, and hiding it
    # would make reports unreadable.
    return value.startswith(("/", "~/", "./")) or value.strip().lower() in {"", "true", "false"}


def _credentials(url: str) -> set[str]:
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        user, password = parts.username or "", parts.password or ""
    except ValueError:
        return set()
    if not password:
        # A lone user name may be a token; a short one (`bob`) would blank harmless text.
        return {word for word in (user, unquote(user)) if len(word) >= _SHORTEST}
    return {f"{user}:{password}", password, unquote(password)} - {""}

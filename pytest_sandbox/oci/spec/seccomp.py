"""The default seccomp profile, resolved for an architecture, a kernel and capabilities.

seccomp.json holds the rules with their conditions; a runtime takes only plain ones. The rules say
what Docker's default profile says: what is not allowed fails with EPERM, clone3 with ENOSYS (so
that the C library falls back to clone, whose flags a filter can see), and new user namespaces,
AF_ALG and AF_VSOCK sockets are denied. A name that the host's libseccomp does not know is passed
over by runc and crun; such a call fails with EPERM then.
"""

from __future__ import annotations

import json
import re
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_sandbox.errors import RuntimeUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterable


@cache
def _profile() -> dict[str, Any]:
    # importlib.resources would cost more than the rest of this module.
    file = Path(__file__).with_name("seccomp.json")
    profile: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return profile


def load() -> None:
    """Read the profile: forks of this process have it then."""
    _profile()


def kernel_version(release: str) -> tuple[int, int]:
    """(6, 1) of "6.1.0-18-amd64". Raises RuntimeUnavailable for a text that is no release."""
    match = re.match(r"(\d+)\.(\d+)", release)
    if match is None:
        msg = f"{release!r} is no kernel release"
        raise RuntimeUnavailable(msg, next_step="pass what `uname -r` says")
    return int(match[1]), int(match[2])


def _holds(rule: dict[str, Any], arch: str, kernel: tuple[int, int], caps: frozenset[str]) -> bool:
    if "arches" in rule and arch not in rule["arches"]:
        return False
    if arch in rule.get("not_arches", ()):
        return False
    if "min_kernel" in rule and kernel < tuple(rule["min_kernel"]):
        return False
    return caps.issuperset(rule.get("caps", ())) and caps.isdisjoint(rule.get("not_caps", ()))


def seccomp(
    architecture: str, kernel: str, capabilities: Iterable[str], *, native_only: bool = False
) -> dict[str, Any]:
    """`linux.seccomp`. `architecture` is Go's name (amd64), `kernel` a release, `capabilities` the
    bounding set. `native_only` leaves the 32-bit and x32 calls out (all of them are then killed),
    which makes a start quicker. Raises RuntimeUnavailable for an unknown architecture.

    The same arguments give the same object: it is not to be changed.
    """
    return _resolved(architecture, kernel, frozenset(capabilities), native_only)


@lru_cache(maxsize=8)
def _resolved(
    architecture: str, kernel: str, held: frozenset[str], native_only: bool
) -> dict[str, Any]:
    profile = _profile()
    architectures = profile["architectures"].get(architecture)
    if architectures is None:
        known = ", ".join(sorted(profile["architectures"]))
        msg = f"no seccomp profile for {architecture!r}"
        raise RuntimeUnavailable(msg, next_step=f"profiles are there for {known}")
    version = kernel_version(kernel)
    plain: set[str] = set()
    special: list[dict[str, Any]] = []
    for rule in profile["rules"]:
        if not _holds(rule, architecture, version, held):
            continue
        if "args" in rule or "errno" in rule:
            special.append(_special(rule))
        else:
            plain.update(rule["names"])
    # Beside a rule without conditions, one with them means nothing, and crun refuses the pair.
    special = [r for r in special if r["action"] != "SCMP_ACT_ALLOW" or r["names"][0] not in plain]
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": profile["default_errno"],
        "architectures": architectures[:1] if native_only else architectures,
        "syscalls": [{"names": sorted(plain), "action": "SCMP_ACT_ALLOW"}, *special],
    }


def _special(rule: dict[str, Any]) -> dict[str, Any]:
    if "errno" in rule:
        return {"names": rule["names"], "action": "SCMP_ACT_ERRNO", "errnoRet": rule["errno"]}
    args = []
    for index, operator, value, *second in rule["args"]:
        arg = {"index": index, "value": value, "op": f"SCMP_CMP_{operator}"}
        args.append(arg | ({"valueTwo": second[0]} if second else {}))
    return {"names": rule["names"], "action": "SCMP_ACT_ALLOW", "args": args}

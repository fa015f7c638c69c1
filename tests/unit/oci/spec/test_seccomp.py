"""The default seccomp profile: what each architecture, kernel and capability set gets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pytest_sandbox.errors import RuntimeUnavailable
from pytest_sandbox.oci.spec.capabilities import DEFAULT
from pytest_sandbox.oci.spec.seccomp import kernel_version, seccomp

PODMANS = Path("/usr/share/containers/seccomp.json")
NEWER = {
    *("cachestat", "fchmodat2", "futex_requeue", "futex_wait", "futex_waitv", "futex_wake"),
    *("getxattrat", "listxattrat", "removexattrat", "setxattrat", "listmount", "statmount"),
    *("map_shadow_stack", "mseal", "riscv_hwprobe", "uretprobe", "io_pgetevents_time64"),
}
"""Calls that are younger than podman's list of 2023."""
STRICTER = {"io_pgetevents", "vmsplice"}
"""Calls that podman denies and Docker allows."""


def plain(profile: dict[str, Any]) -> set[str]:
    """Names that are allowed without a condition."""
    return {
        name
        for rule in profile["syscalls"]
        if rule["action"] == "SCMP_ACT_ALLOW" and not rule.get("args")
        for name in rule["names"]
    }


def rules_of(profile: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [rule for rule in profile["syscalls"] if name in rule["names"]]


@pytest.fixture
def usual() -> dict[str, Any]:
    return seccomp("amd64", "6.1.0-18-amd64", DEFAULT)


def test_default_is_eperm(usual: dict[str, Any]) -> None:
    assert usual["defaultAction"] == "SCMP_ACT_ERRNO"
    assert usual["defaultErrnoRet"] == 1
    assert usual["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]
    assert len(plain(usual)) > 360


@pytest.mark.parametrize(
    "name",
    [
        *("mount", "umount2", "setns", "unshare", "bpf", "perf_event_open", "kexec_load", "reboot"),
        *("add_key", "keyctl", "request_key", "init_module", "finit_module", "swapon", "acct"),
        *("open_by_handle_at", "userfaultfd", "io_uring_setup", "pivot_root", "settimeofday"),
        *("open_tree", "move_mount", "fsopen", "mount_setattr", "syslog", "iopl", "nfsservctl"),
    ],
)
def test_denied(usual: dict[str, Any], name: str) -> None:
    assert rules_of(usual, name) == []


def test_new_namespaces_are_denied(usual: dict[str, Any]) -> None:
    (clone,) = rules_of(usual, "clone")
    every_namespace = 0x7E020000
    assert clone["args"] == [
        {"index": 0, "value": every_namespace, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}
    ]
    (clone3,) = rules_of(usual, "clone3")
    assert (clone3["action"], clone3["errnoRet"]) == ("SCMP_ACT_ERRNO", 38)
    (other,) = rules_of(seccomp("s390x", "6.1", DEFAULT), "clone")
    assert other["args"][0]["index"] == 1


def test_with_sys_admin() -> None:
    profile = seccomp("amd64", "6.1", [*DEFAULT, "CAP_SYS_ADMIN"])
    assert {"mount", "clone", "clone3", "unshare", "setns"} <= plain(profile)
    # a conditional rule beside an unconditional one means nothing: there is none
    assert all("args" not in r and "errnoRet" not in r for r in rules_of(profile, "clone"))
    assert rules_of(profile, "clone3") == [profile["syscalls"][0]]


def test_sockets_of_two_families_are_denied(usual: dict[str, Any]) -> None:
    conditions = [(r["args"][0]["op"], r["args"][0]["value"]) for r in rules_of(usual, "socket")]
    assert conditions == [("SCMP_CMP_LT", 38), ("SCMP_CMP_EQ", 39), ("SCMP_CMP_GT", 40)]


def test_kernel_decides_on_ptrace() -> None:
    assert "ptrace" in plain(seccomp("amd64", "4.8.0", DEFAULT))
    assert "ptrace" not in plain(seccomp("amd64", "4.7.10", DEFAULT))
    assert "ptrace" in plain(seccomp("amd64", "4.7", [*DEFAULT, "CAP_SYS_PTRACE"]))
    assert "ptrace" in plain(seccomp("amd64", "10.0", DEFAULT))


@pytest.mark.parametrize(
    ("arch", "mine", "others"),
    [
        ("amd64", ["arch_prctl", "modify_ldt"], ["breakpoint", "riscv_flush_icache"]),
        ("386", ["modify_ldt"], ["arch_prctl"]),
        ("arm64", ["breakpoint", "set_tls", "sync_file_range2"], ["arch_prctl"]),
        ("ppc64le", ["swapcontext", "sync_file_range2"], ["set_tls"]),
        ("s390x", ["s390_pci_mmio_read"], ["modify_ldt"]),
        ("riscv64", ["riscv_flush_icache"], ["modify_ldt"]),
    ],
)
def test_rules_of_architectures(arch: str, mine: list[str], others: list[str]) -> None:
    profile = seccomp(arch, "6.1", DEFAULT)
    assert plain(profile) >= set(mine)
    assert plain(profile).isdisjoint(others)


def test_native_calls_only() -> None:
    assert seccomp("amd64", "6.1", DEFAULT, native_only=True)["architectures"] == [
        "SCMP_ARCH_X86_64"
    ]
    assert seccomp("arm64", "6.1", DEFAULT)["architectures"] == [
        "SCMP_ARCH_AARCH64",
        "SCMP_ARCH_ARM",
    ]


def test_unknown_architecture_and_kernel() -> None:
    with pytest.raises(RuntimeUnavailable, match="'vax'"):
        seccomp("vax", "6.1", DEFAULT)
    with pytest.raises(RuntimeUnavailable, match="no kernel release"):
        kernel_version("next")
    assert kernel_version("6.18.0-rc1+") == (6, 18)


def test_no_name_stands_twice() -> None:
    for arch in ("amd64", "arm64"):
        names = [
            n
            for r in seccomp(arch, "6.1", DEFAULT)["syscalls"]
            if "args" not in r
            for n in r["names"]
        ]
        assert len(names) == len(set(names))


@pytest.mark.skipif(not PODMANS.exists(), reason="podman's seccomp.json is not installed")
def test_beside_the_profile_of_podman(usual: dict[str, Any]) -> None:
    """The same profile in another's words: nothing is allowed here that it denies."""
    held = set(DEFAULT)
    theirs: set[str] = set()
    denied: set[str] = set()
    for rule in json.loads(PODMANS.read_text())["syscalls"]:
        wanted, unwanted = rule.get("includes") or {}, rule.get("excludes") or {}
        if not held.issuperset(wanted.get("caps", ())) or held & set(unwanted.get("caps", ())):
            continue
        if "amd64" not in wanted.get("arches", ["amd64"]):
            continue
        if rule["action"] == "SCMP_ACT_ALLOW":
            theirs.update(rule["names"])
        else:
            denied.update(rule["names"])
    mine = {
        name for r in usual["syscalls"] if r["action"] == "SCMP_ACT_ALLOW" for name in r["names"]
    }
    assert mine - theirs <= NEWER | STRICTER
    assert mine & denied <= theirs | STRICTER
    assert len(mine & theirs) > 330

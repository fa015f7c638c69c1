"""What a failed step of the namespace probe means, by the kernel's settings."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from pytest_sandbox.oci import probe_namespaces
from pytest_sandbox.oci.findings import Finding
from pytest_sandbox.oci.ids import NoIds
from pytest_sandbox.oci.probe_namespaces import explain, inside_container, refused_map
from pytest_sandbox.oci.probes import why_not

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A /proc of a kernel that has user namespaces and forbids nothing."""
    for folder in ("sys/user", "sys/kernel", "self/ns", "1"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "self/ns/user").touch()
    (tmp_path / "self/status").write_text("Name:\tx\nNoNewPrivs:\t0\nSeccomp:\t0\n")
    (tmp_path / "self/mountinfo").write_text("1 0 8:1 / / rw - ext4 /dev/vda rw\n")
    (tmp_path / "sys/user/max_user_namespaces").write_text("15000\n")
    (tmp_path / "1/root").symlink_to("/")
    return tmp_path


CASES = [
    # id, the step and its error, the file that explains it and its text, words of the remedy
    ("userns-disabled", "userns", errno.ENOSPC, "", "", "max_user_namespaces"),
    ("userns-disabled", "userns", errno.EUSERS, "", "", "max_user_namespaces"),
    ("userns-disabled", "userns", errno.EPERM, "sys/user/max_user_namespaces", "0", "sysctl"),
    (
        "userns-clone-off",
        "userns",
        errno.EPERM,
        "sys/kernel/unprivileged_userns_clone",
        "0",
        "unprivileged_userns_clone=1",
    ),
    (
        "userns-apparmor",
        "mount",
        errno.EACCES,
        "sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "apparmor_restrict_unprivileged_userns=0",
    ),
    ("userns-missing", "userns", errno.EINVAL, "", "", "CONFIG_USER_NS"),
    ("userns-blocked", "mount", errno.EPERM, "self/status", "Seccomp:\t2\n", "seccomp=unconfined"),
    (
        "userns-chroot",
        "userns",
        errno.EPERM,
        "self/mountinfo",
        "1 0 8:1 / /proc rw - proc proc rw\n",
        "pivot_root",
    ),
    ("userns-blocked", "mount", errno.EACCES, "", "", "security policy"),
    ("masked-proc", "proc", errno.EPERM, "", "", "systempaths=unconfined"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}-{case[2]}")
def test_each_cause_has_its_own_diagnosis(
    proc: Path, monkeypatch: pytest.MonkeyPatch, case: tuple[str, str, int, str, str, str]
) -> None:
    problem, step, number, file, text, remedy = case
    monkeypatch.setattr(probe_namespaces.os, "geteuid", lambda: 1000)
    if file:
        (proc / file).write_text(text)
    found = explain({"failed": step, "errno": number}, proc)
    assert (found.id, found.ok, found.fatal) == (problem, False, True)
    assert remedy in found.next_step
    assert os.strerror(number) in found.what


def test_settings_alone_fail_nothing(proc: Path) -> None:
    """AppArmor's setting does not bind root, and no setting explains an unrelated error."""
    (proc / "sys/kernel/apparmor_restrict_unprivileged_userns").write_text("1")
    (proc / "sys/kernel/unprivileged_userns_clone").write_text("0")
    assert explain({"failed": "mount", "errno": errno.ENOMEM}, proc).id == "userns-blocked"


def test_what_newuidmap_said_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said = NoIds("newuidmap refused: uid range", problem="newuidmap-refused", next_step="look")
    for name in ("newuidmap", "newgidmap"):
        (tmp_path / name).touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = refused_map(said)
    assert found.id in {"newuidmap-not-setuid", "newuidmap-no-new-privs"}
    missing = NoIds("newuidmap is not installed", problem="no-newuidmap", next_step="x")
    assert refused_map(missing).id == "no-newuidmap"


def test_signs_of_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert inside_container(tmp_path) == ""
    (tmp_path / "run/systemd").mkdir(parents=True)
    (tmp_path / "run/systemd/container").write_text("lxc\n")
    assert inside_container(tmp_path) == "/run/systemd/container (lxc)"
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert inside_container(tmp_path) == "KUBERNETES_SERVICE_HOST"
    (tmp_path / ".dockerenv").touch()
    assert inside_container(tmp_path) == "/.dockerenv"


def test_the_first_fatal_finding_is_why_not() -> None:
    warning = Finding("insecure-runc", False, "old")
    fatal = Finding("no-init", False, "none", fatal=True)
    assert why_not([Finding("userns", True, "fine"), warning]) is None
    assert why_not([warning, fatal, Finding("no-runc", False, "none", fatal=True)]) is fatal

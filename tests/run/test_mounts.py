"""Folders of the host whose file system has no idmapped mounts."""

from __future__ import annotations

import os

import pytest


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's sandboxes have idmapped mounts")
def test_a_folder_without_idmapped_mounts_can_only_be_read(cli, image, clean):
    if cli.name == "user":
        pytest.skip("an ordinary user's sandboxes need no idmapped mounts")
    done = cli("run", "--rm", "-v", "/proc:/a", image, "true")
    assert done.returncode == 125
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "/proc cannot be mounted writable: its file system has no idmapped mounts" in done.stderr
    assert "mount it with :ro at /a" in done.stderr
    done = cli("run", "--rm", "-v", "/proc:/a:ro", image, "cat", "/a/sys/kernel/random/boot_id")
    assert done.returncode == 0, done.stderr
    with open("/proc/sys/kernel/random/boot_id") as file:  # noqa: PTH123
        assert done.stdout == file.read()
    done = cli("run", "--rm", "-v", "/proc:/a:ro", image, "touch", "/a/sys/kernel/hostname")
    assert done.returncode == 1
    assert "Read-only" in done.stderr

"""The Debian tree that benchmarks begin with."""

from __future__ import annotations

import subprocess
import sys


def base_tar(image: str = "") -> bytes:
    """The plain tar of a Debian base, all its layers in one, from docker; the benchmark ends where
    docker has no such image. By default it is the one that families.toml names.
    """
    from pytest_sandbox.images.families import load_families

    image = image or load_families()["debian"].image
    made = subprocess.run(["docker", "create", image, "true"], capture_output=True, check=False)
    if made.returncode:
        sys.exit(f"docker has no {image}: {made.stderr.decode().strip()}")
    name = made.stdout.decode().strip()
    try:
        done = subprocess.run(["docker", "export", name], capture_output=True, check=True)
    finally:
        subprocess.run(["docker", "rm", name], capture_output=True, check=True)
    return done.stdout

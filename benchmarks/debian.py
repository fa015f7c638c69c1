"""The Debian tree that benchmarks begin with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

NAME = "bench/debian:base"
"""What it is called in stores that a benchmark makes for itself."""


def base_tar(image: str = "", base: str | None = None) -> bytes:
    """The plain tar of a Debian base: the file `base`, else an image of docker's, all its layers in
    one. Without either it is the image that families.toml names; the benchmark ends where docker
    does not have it.
    """
    from pytest_sandbox.images.families import load_families

    if base:
        return Path(base).read_bytes()
    image = image or load_families()["debian"].image
    try:
        made = subprocess.run(["docker", "create", image, "true"], capture_output=True, check=False)
    except FileNotFoundError:
        sys.exit("no docker to take a Debian base from: name the tar of one with --base")
    if made.returncode:
        sys.exit(f"docker has no {image}: {made.stderr.decode().strip()}; or use --base")
    name = made.stdout.decode().strip()
    try:
        done = subprocess.run(["docker", "export", name], capture_output=True, check=True)
    finally:
        subprocess.run(["docker", "rm", name], capture_output=True, check=True)
    return done.stdout


def of(given: argparse.Namespace) -> bytes:
    """The base that the command line asks for."""
    return base_tar(given.image or "", given.base)

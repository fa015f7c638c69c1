"""Work in a child with a mount namespace of its own; what it mounts goes with it."""

from __future__ import annotations

import json
import os
import traceback

from pytest_sandbox.oci import linux


class Failed(Exception):
    """What the child raised."""


def apart(work):
    """The answer (JSON) of `work`, done in a forked child. Raises Failed with its traceback."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            linux.unshare(linux.CLONE_NEWNS)
            linux.mount("none", "/", "", linux.MS_REC | linux.MS_PRIVATE)
            linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
            answer = {"done": work()}
        except BaseException:
            answer = {"failed": traceback.format_exc()}
        os.write(writer, json.dumps(answer).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        answer = json.loads(file.read())
    os.waitpid(child, 0)
    if "failed" in answer:
        raise Failed(answer["failed"])
    return answer["done"]


def folder(path):
    """A descriptor as jobs get them."""
    return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

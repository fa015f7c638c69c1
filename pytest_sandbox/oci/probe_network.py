"""The network of sandboxes, tried: a job of the supervisor that attaches a stack to nothing."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from pytest_sandbox.errors import RuntimeUnavailable
from pytest_sandbox.oci import linux
from pytest_sandbox.oci.findings import Finding, install

if TYPE_CHECKING:
    from pytest_sandbox.oci.store.layers import Caller
    from pytest_sandbox.oci.supervisor import Call


def probe_network(caller: Caller) -> Finding:
    """Attach a user-mode stack to a network namespace of its own. Not fatal: `none` works."""
    told = caller.call("pytest_sandbox.oci.probe_network:attach", {}, where="host")
    if told["problem"]:
        step = told["next_step"]
        if told["problem"] == "no-net-stack":
            step = f"{install('slirp4netns')} (or pasta: {install('pasta')})"
        return Finding(told["problem"], False, told["what"], step)
    notes = f"; {'; '.join(told['notes'])}" if told["notes"] else ""
    return Finding("network", True, f"{told['stack']} gives sandboxes a network{notes}")


def attach(call: Call) -> dict[str, Any]:
    """Job (host): a process with the sandboxes' ids and a network namespace gets a stack."""
    from pytest_sandbox.oci.network import bridge

    reader, writer = os.pipe2(os.O_CLOEXEC)
    held, hold = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        try:
            os.close(hold)
            call.enter_ids()
            linux.unshare(linux.CLONE_NEWNET)
            os.write(writer, b".")
            os.read(held, 1)
        finally:
            os._exit(0)
    os.close(writer)
    os.close(held)
    try:
        if os.read(reader, 1) != b".":
            what = "no network namespace can be made"
            step = "allow them: sysctl user.max_net_namespaces"
            return {"problem": "no-net-namespace", "what": what, "next_step": step}
        found = bridge.attach(child)
    except RuntimeUnavailable as wrong:
        problem = getattr(wrong, "problem", "network-stack-failed")
        if problem == "network-stack-missing":
            problem = "no-net-stack"
        return {"problem": problem, "what": wrong.what, "next_step": wrong.next_step}
    finally:
        os.close(reader)
        os.close(hold)  # the process ends, and its stack with it
        os.waitpid(child, 0)
    return {"problem": "", "stack": found.stack, "notes": list(found.notes)}

"""The network of sandboxes, tried where the supervisor is: its namespaces are what counts."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pytest_sandbox.oci.findings import Finding, install

if TYPE_CHECKING:
    from pytest_sandbox.oci.store.layers import Caller
    from pytest_sandbox.oci.supervisor import Call

_JOB = "pytest_sandbox.oci.probe_network:attach"


def probe_network(caller: Caller) -> Finding:
    """Whether a user-mode stack can be attached. Not fatal: `none` and `host` need none."""
    told = caller.call(_JOB, {}, where="host")["findings"][0]
    if told["id"] == "network-stack-missing":
        told["id"] = "no-net-stack"
        told["next_step"] = f"{install('slirp4netns')} (or pasta: {install('pasta')})"
    return Finding(told["id"], told["ok"], told["what"], told["next_step"])


def attach(call: Call) -> dict[str, Any]:
    """Job (host): every stack, tried on a namespace of its own."""
    from pytest_sandbox.oci.network.probe import probe

    del call
    return {"findings": [asdict(found) for found in probe()]}

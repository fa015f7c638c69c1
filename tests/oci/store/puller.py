"""A process of its own that pulls: `python -m tests.oci.store.puller STORE REFERENCE [POLICY]`."""

from __future__ import annotations

import sys
from pathlib import Path

from pytest_sandbox.oci.ids import find_ids
from pytest_sandbox.oci.pull import pull
from pytest_sandbox.oci.reference import parse_reference
from pytest_sandbox.oci.registry import Registry
from pytest_sandbox.oci.store import Store
from pytest_sandbox.oci.supervisor import Supervisor


def main(root, reference, policy="missing"):
    supervisor = Supervisor(find_ids)
    try:
        store = Store(Path(root), supervisor)
        with Registry(environ={}) as registry:
            image = pull(parse_reference(reference), store=store, registry=registry, policy=policy)
        print(image.digest)
    finally:
        supervisor.close()


if __name__ == "__main__":
    main(*sys.argv[1:])

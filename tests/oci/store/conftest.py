"""A supervisor for the session, stores of their own for tests."""

from __future__ import annotations

import os

import pytest

from pytest_sandbox.oci.ids import NoIds, find_ids
from pytest_sandbox.oci.registry import Registry
from pytest_sandbox.oci.retries import RetryRule
from pytest_sandbox.oci.store import Store
from pytest_sandbox.oci.supervisor import Supervisor
from tests.oci.registry.scripted import Scripted
from tests.oci.requiring import missing
from tests.oci.store.seeing import listing


@pytest.fixture(scope="session")
def supervisor():
    """A supervisor with the ids of whoever runs the tests."""
    try:
        ids = find_ids()
    except NoIds as lacking:
        missing(lacking.what)
    found = Supervisor(ids)
    yield found
    found.close()


@pytest.fixture
def store(supervisor, tmp_path):
    """A new store; its files may belong to ids that only the supervisor can remove."""
    yield Store(tmp_path / "store", supervisor)
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    names = {"names": [name for name in listing(tmp_path) if "store" in name]}
    supervisor.call("pytest_sandbox.oci.layers.jobs:remove", names, [descriptor], where="host")
    os.close(descriptor)


@pytest.fixture
def client():
    """A registry client without credentials; it does not wait between tries."""
    rule = RetryRule(sleep=lambda _: None)
    with Registry(environ={}, rule=rule, timeout=20) as found:
        yield found


@pytest.fixture
def server():
    """A scripted registry."""
    with Scripted() as found:
        yield found

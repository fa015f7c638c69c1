"""A sandbox's resolv.conf from the host's."""

from __future__ import annotations

import pytest

from pytest_sandbox.oci.network.resolver import for_sandbox


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("nameserver 127.0.0.53\noptions edns0\n", "nameserver 10.0.2.3\noptions edns0\n"),
        (
            "# ours\nsearch  a.t b.t\nnameserver 192.0.2.1\nnameserver 192.0.2.2\n",
            "nameserver 10.0.2.3\nnameserver 192.0.2.1\nnameserver 192.0.2.2\nsearch a.t b.t\n",
        ),
        (
            "domain a.test\nnameserver ::1\nnameserver 169.254.169.254\n",
            "nameserver 10.0.2.3\ndomain a.test\n",
        ),
        (
            "".join(f"nameserver 192.0.2.{n}\n" for n in range(1, 6)),
            "nameserver 10.0.2.3\nnameserver 192.0.2.1\nnameserver 192.0.2.2\n",
        ),
    ],
)
def test_the_forwarder_comes_first(host: str, expected: str) -> None:
    assert for_sandbox(host, forwarded=True) == (expected, [])


def test_without_a_forwarder_only_what_a_sandbox_reaches() -> None:
    text, notes = for_sandbox("nameserver 127.0.0.1\nnameserver 192.0.2.1\n", forwarded=False)
    assert text == "nameserver 192.0.2.1\n"
    assert notes == []


@pytest.mark.parametrize("host", ["", "nameserver fd00::1\n", "nameserver nonsense\n"])
def test_no_name_server_is_said(host: str) -> None:
    text, notes = for_sandbox(host, forwarded=True)
    assert text == ""
    assert "no DNS in the sandbox" in notes[0]

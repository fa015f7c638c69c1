"""WWW-Authenticate headers, as servers write them."""

from __future__ import annotations

import time

import pytest

from pytest_sandbox.oci.challenges import Challenge, parse_challenges


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (
            ['Bearer realm="https://a/t",service="s",scope="repository:x:pull,push"'],
            [
                (
                    "bearer",
                    {"realm": "https://a/t", "service": "s", "scope": "repository:x:pull,push"},
                )
            ],
        ),
        (
            ["Bearer realm=https://a/t , service=s"],
            [("bearer", {"realm": "https://a/t", "service": "s"})],
        ),
        (
            ['Basic realm="a, b=c", Bearer REALM="https://a"'],
            [("basic", {"realm": "a, b=c"}), ("bearer", {"realm": "https://a"})],
        ),
        (
            ["Negotiate", "Negotiate abc==, Basic realm=x"],
            [("negotiate", {}), ("negotiate", {}), ("basic", {"realm": "x"})],
        ),
        (['Bearer realm="say \\"hi\\""'], [("bearer", {"realm": 'say "hi"'})]),
        (['Bearer realm="first",realm="second"'], [("bearer", {"realm": "first"})]),
        (['Bearer realm="open'], [("bearer", {})]),
        ([""], []),
        ([",,"], []),
        ([], []),
        (['Bearer   realm = "x"  ,  service="y"'], [("bearer", {"realm": "x", "service": "y"})]),
    ],
)
def test_challenges_are_read(headers, expected):
    assert parse_challenges(headers) == [Challenge(*each) for each in expected]


def test_a_header_that_is_meant_to_take_long_does_not():
    started = time.process_time()
    for text in (
        'Bearer a="' + "\\" * 60_000,
        "a " * 30_000,
        "Bearer " + "a=b," * 20_000,
        "," * 60_000,
    ):
        parse_challenges([text])
    assert time.process_time() - started < 20, "quadratic: minutes"

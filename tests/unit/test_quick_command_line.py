"""The quick reader of command lines gives what click gives, or leaves the line to click."""

from __future__ import annotations

import click
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pytest_sandbox.cli import quick, run
from pytest_sandbox.cli.exec import command as exec_command
from pytest_sandbox.cli.options import PROCESS, RUN


def by_click(command, words):
    """What click reads; None where it refuses, or shows its help."""
    try:
        with command.make_context("pytest-sandbox", list(words)) as context:
            return context.params
    except (click.ClickException, click.exceptions.Exit):
        return None


def flags(table):
    return [flag for option in table for flag in (*option.flags, option.off) if flag]


def lines(table):
    values = st.one_of(
        st.sampled_from(
            ["", "a", "a=b", "-", "--", "-x", "none", "never", "1", "é  ü", "=", "-it"]
        ),
        st.text(max_size=6).filter(lambda text: "\0" not in text),
    )
    words = st.one_of(
        st.sampled_from(flags(table)),
        st.builds("{}={}".format, st.sampled_from(flags(table)), values),
        st.builds("{}{}".format, st.sampled_from(["-e", "-i", "-it", "-ti", "-u", "-ie"]), values),
        values,
        st.sampled_from(["--nope", "-Z", "--help", "-h", "--env", "--ent"]),
    )
    return st.lists(words, max_size=8)


def check(command, table, first, words):
    ours, theirs = quick.read(table, first, words), by_click(command, words)
    if ours is None:
        return
    assert theirs is not None, (words, ours)
    assert {**theirs, "command": tuple(theirs["command"])} == ours


@given(lines(RUN))
@example(["--rm", "image", "--", "sh", "-c", "x"])
@example(["-e", "-i", "image"])
@example(["-itd", "--no-init", "image", "-it"])
@example(["--", "image", "--rm"])
@example(["-", "x"])
def test_run(words):
    check(run.command, RUN, "image", words)


@given(lines(PROCESS))
@example(["-itu", "root", "name", "--", "-x"])
def test_exec(words):
    check(exec_command, PROCESS, "name", words)


@pytest.mark.parametrize(
    "words",
    [
        ["--rm", "image", "true"],
        ["-i", "-t", "image"],
        ["-it", "--name=x", "-eA=b", "-e", "C", "-p", "80", "image", "--", "--rm"],
        ["--network", "bridge", "--pull", "never", "--memory=1g", "--no-init", "image"],
    ],
)
def test_usual_lines_need_no_click(words):
    assert quick.read(RUN, "image", words) is not None


@pytest.mark.parametrize(
    "words", [[], ["--help"], ["--rm"], ["--nope", "image"], ["--network", "x", "image"], ["-e"]]
)
def test_the_rest_is_left_to_click(words):
    assert quick.read(RUN, "image", words) is None

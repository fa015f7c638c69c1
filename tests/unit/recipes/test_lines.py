"""The second look at a text finds the lines of keys in every way that TOML writes them."""

from __future__ import annotations

import pytest

from pytest_sandbox.recipes.lines import line_of, positions

TEXT = '''# top [not.a] table
title = """
[[steps]]
x = 1
"""   # 2-5

[metadata]
name = 'a # b'
"quoted key" = "x\\" ["
list = [ # comment ]
  "a",
  { deep = [1,
     2] },
]
dotted.key.one = 1

[[steps]]
when = { os = ["linux"], arch = "x" }
[steps.sub]
y = 1979-05-27T07:32:00Z

[[steps]]
[[steps.list]]
z = 1
[[steps.list]]
z = \'\'\'
[metadata]
\'\'\'
[verify.inner]
command = "x"
'''


@pytest.mark.parametrize(
    ("where", "line"),
    [
        (("title",), 2),
        (("metadata",), 7),
        (("metadata", "name"), 8),
        (("metadata", "quoted key"), 9),
        (("metadata", "list", 0), 11),
        (("metadata", "list", 1), 12),
        (("metadata", "list", 1, "deep", 1), 13),
        (("metadata", "dotted", "key", "one"), 15),
        (("steps", 0), 17),
        (("steps", 0, "when", "arch"), 18),
        (("steps", 0, "sub", "y"), 20),
        (("steps", 1), 22),
        (("steps", 1, "list", 1, "z"), 26),
        (("verify", "inner", "command"), 30),
        (("verify", "absent", "key"), 29),
        (("absent",), 0),
    ],
)
def test_lines(where, line):
    assert line_of(TEXT, where) == line
    assert line_of(TEXT.replace("\n", "\r\n"), where) == line


def test_spans_cover_what_is_written():
    text = 'a = "x"\nb = [1, 22]  # c\n'
    found = {where: text[start:end] for where, (start, end) in positions(text).items()}
    assert found == {("a",): 'a = "x"', ("b", 0): "1", ("b", 1): "22", ("b",): "b = [1, 22]"}


@pytest.mark.parametrize("text", ["a = ", "[", "[[a", "= 1", 'a = "', "a = [1", "a = {b = 1"])
def test_broken_text_ends_the_scan(text):
    assert line_of(text, ("zz",)) == 0

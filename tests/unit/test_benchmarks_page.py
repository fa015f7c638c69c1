"""The figures of docs/benchmarks.md: each benchmark has a section, and a run replaces its own."""

from __future__ import annotations

import pytest

from benchmarks.__main__ import NAMES, arguments
from benchmarks.contest import Bar, Contest, interleave
from benchmarks.page import PAGE, public, replace, section


def test_every_benchmark_has_one_section_in_the_page():
    text = PAGE.read_text(encoding="utf-8")
    for name in (*NAMES, "machine"):
        assert text.count(f"<!-- figures: {name} -->") == 1, name
        assert text.count(f"<!-- end: {name} -->") == 1, name
        assert text.index(f"<!-- figures: {name} -->") < text.index(f"<!-- end: {name} -->")


def test_a_run_replaces_its_own_figures_alone():
    page = "# Page\n<!-- figures: a -->\nold\n<!-- end: a -->\nprose\n<!-- figures: b -->\n"
    page += "kept\n<!-- end: b -->\n"
    once = replace(page, "a", "new")
    assert "old" not in once
    assert "kept" in once
    assert "prose" in once
    assert replace(once, "a", "new") == once


def test_a_section_that_is_missing_comes_last():
    page = replace("# Page\n", "more", "figures")
    assert page.endswith("## more\n\n<!-- figures: more -->\n\nfigures\n\n<!-- end: more -->\n")


def test_no_path_or_address_of_the_machine_gets_into_the_page():
    text = public("left: file /tmp/bench-x/data, from https://mirror.example:8/debian; /proc/keys")
    assert text == "left: file ..., from ... /proc/keys"


def test_a_section_tells_medians_bars_and_who_did_not_take_part():
    contest = Contest(
        "exec: `true` a|b",
        {"ours": [0.001, 0.003, 0.002], "peer": [0.02]},
        bars=[Bar("peer against ours", 10.0, 20.0, least=True)],
        skipped={"podman": "no podman on PATH"},
    )
    text = section(contest, "exec")
    assert text.startswith("### `true` a|b\n")
    assert "| ours | 2.0 ms | 3.0 ms |  | 3 |" in text
    assert "| peer | 20.0 ms | 20.0 ms | 10.00x | 1 |" in text
    assert "- **MISSED**: peer against ours: 10.00x (at least 20x)" in text
    assert "- podman: did not take part: no podman on PATH" in text


def test_a_slow_one_takes_few_turns():
    found = interleave({name: lambda: 1.0 for name in "abc"}, 6, every={"c": 3})
    assert [len(found[name]) for name in "abc"] == [6, 6, 2]


@pytest.mark.parametrize(
    ("words", "written"),
    [((), True), (("--quick",), False), (("exec",), False), (("exec", "--write"), True)],
)
def test_the_page_is_written_by_a_whole_run(words, written):
    assert arguments(words).write is written

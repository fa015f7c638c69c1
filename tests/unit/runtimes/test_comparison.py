"""What several upper folders change: compared by the views with and without them."""

from __future__ import annotations

import os

import pytest

from pytest_sandbox.runtimes.oci.comparison import compare


@pytest.fixture
def compared(tmp_path):
    """compare() of trees that a test fills: `below`, `now`, and one upper folder each."""
    opened = []

    def do(uppers, below, now):
        folders = []
        for number, tree in enumerate((*uppers, below, now)):
            place = tmp_path / str(number)
            place.mkdir()
            for path, content in tree.items():
                target = place / path
                target.parent.mkdir(parents=True, exist_ok=True)
                if content is None:
                    target.mkdir(exist_ok=True)
                elif content.startswith("->"):
                    target.symlink_to(content[2:])
                else:
                    target.write_text(content)
                    os.utime(target, (1, len(content)))
            opened.append(os.open(place, os.O_RDONLY | os.O_DIRECTORY))
            folders.append(opened[-1])
        return compare(folders[:-2], folders[-2], folders[-1])

    yield do
    for descriptor in opened:
        os.close(descriptor)


def test_added_changed_removed(compared):
    found = compared(
        [{"etc/new": "1", "etc/old": "22"}, {"etc/gone": ""}],
        {"etc/old": "1", "etc/gone": "x", "etc/same": "1"},
        {"etc/old": "22", "etc/new": "1", "etc/same": "1"},
    )
    assert found == {"added": ["/etc/new"], "changed": ["/etc/old"], "removed": ["/etc/gone"]}


def test_a_new_folder_with_all_in_it(compared):
    tree = {"opt/tool/bin/run": "1", "opt/tool/lib": None}
    found = compared([tree], {"opt": None}, tree)
    assert found["added"] == ["/opt/tool", "/opt/tool/bin", "/opt/tool/bin/run", "/opt/tool/lib"]


def test_what_an_opaque_folder_hides(compared):
    found = compared([{"a": None}], {"a/x": "1", "a/y/z": "1"}, {"a": None})
    assert found == {"added": [], "changed": [], "removed": ["/a/x", "/a/y"]}


def test_a_removed_folder_stands_for_all_in_it(compared):
    found = compared([{"d/e": "1", "d-1": ""}, {"d": ""}], {"d/e": "0", "d-1": "0"}, {"k": "1"})
    assert found["removed"] == ["/d", "/d-1"]


def test_links_are_not_followed(compared):
    """A folder in the place of a link: what the link shows is not what was there."""
    below = {"usr/lib/a": "1", "lib": "->usr/lib"}
    found = compared([{"lib/a": "1"}], below, {"usr/lib/a": "1", "lib/a": "1"})
    assert (found["added"], found["changed"]) == (["/lib/a"], ["/lib"])


def test_a_link_in_the_place_of_a_folder(compared):
    found = compared(
        [{"d/a": "1"}, {"d": "->usr"}],
        {"d/a": "0", "usr/a": "0"},
        {"d": "->usr", "usr/a": "0"},
    )
    assert found == {"added": [], "changed": ["/d"], "removed": ["/d/a"]}

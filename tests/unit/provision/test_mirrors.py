from __future__ import annotations

import pytest

from pytest_sandbox.errors import Blame, ImageUnavailable
from pytest_sandbox.provision.mirrors import host_sources, mirror_sources


def host(tmp_path, **files):
    folder = tmp_path / "etc/apt/sources.list.d"
    folder.mkdir(parents=True)
    for name, text in files.items():
        path = folder / name.replace("__", ".")
        if name == "main":
            path = tmp_path / "etc/apt/sources.list"
        path.write_text(text)
    return tmp_path


DEB822 = """\
Types: deb deb-src
# a comment
URIs: http://mirror.corp/debian
Suites: bookworm bookworm-updates
Components: main
 contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.corp/debian-security
Suites: bookworm-security
Components: main

Enabled: no
Types: deb
URIs: http://off.corp/debian
Suites: bookworm
Components: main
"""


def test_deb822_is_read(tmp_path):
    sources = host_sources(host(tmp_path, debian__sources=DEB822))
    assert [(s.uri, s.suite, s.components) for s in sources] == [
        ("http://mirror.corp/debian", "bookworm", ("main", "contrib")),
        ("http://mirror.corp/debian", "bookworm-updates", ("main", "contrib")),
        ("http://mirror.corp/debian-security", "bookworm-security", ("main",)),
    ]


def test_other_suites_come_from_the_same_place(tmp_path):
    root = host(tmp_path, debian__sources=DEB822)
    assert [source.line for source in mirror_sources("trixie", root=root)] == [
        "deb http://mirror.corp/debian trixie main",
        "deb http://mirror.corp/debian trixie-updates main",
        "deb http://mirror.corp/debian-security trixie-security main",
    ]
    assert [s.line for s in mirror_sources("sid", root=root)] == [
        "deb http://mirror.corp/debian sid main"
    ]


def test_one_line_form_and_third_parties(tmp_path):
    root = host(
        tmp_path,
        main="""
# deb http://commented.corp/debian bookworm main
deb-src http://src.corp/debian bookworm main
deb [arch=amd64 signed-by=/k.gpg] https://vendor.corp/linux/debian bookworm stable
deb [arch=amd64] https://other.corp/debian/12/prod bookworm main
deb [ arch=amd64 ] http://mirror.corp/debian/ bookworm main contrib # trailing
""",
    )
    assert [s.line for s in mirror_sources("trixie", root=root)] == [
        "deb http://mirror.corp/debian/ trixie main"
    ]


def test_mirror_lists_of_cloud_images(tmp_path):
    root = host(tmp_path, main="deb mirror+file:///etc/apt/mirrors/debian.list bookworm main\n")
    lists = tmp_path / "etc/apt/mirrors"
    lists.mkdir()
    (lists / "debian.list").write_text(
        "# first\nhttps://cloud.corp/debian priority:1\nhttps://b.corp/debian\n"
    )
    assert mirror_sources("trixie", root=root)[0].uri == "https://cloud.corp/debian"


def test_ubuntu_sources_serve_no_debian(tmp_path):
    root = host(tmp_path, main="deb http://mirror.corp/ubuntu noble main universe\n")
    assert mirror_sources("jammy", root=root)[0].line == "deb http://mirror.corp/ubuntu jammy main"
    with pytest.raises(ImageUnavailable, match="no mirror of debian") as caught:
        mirror_sources("trixie", root=root)
    assert caught.value.blame is Blame.HOST
    assert "--mirror" in caught.value.next_step


def test_a_host_without_apt(tmp_path):
    assert host_sources(tmp_path) == []
    with pytest.raises(ImageUnavailable, match="--mirror URL"):
        mirror_sources("trixie", root=tmp_path)


def test_a_named_mirror_is_used_alone(tmp_path):
    root = host(tmp_path, debian__sources=DEB822)
    lines = [s.line for s in mirror_sources("trixie", "https://mine.corp/debian", root=root)]
    assert lines == ["deb https://mine.corp/debian trixie main"]


@pytest.mark.parametrize("bad", ["mine.corp/debian", "http://a b", "http://x]\nRUN", "-oFoo=bar"])
def test_a_bad_mirror_is_named(bad):
    with pytest.raises(ImageUnavailable, match="is no mirror's address"):
        mirror_sources("trixie", bad)

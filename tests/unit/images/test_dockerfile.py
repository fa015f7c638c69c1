"""The text of Dockerfiles."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from pytest_sandbox.errors import SpecError
from pytest_sandbox.images.dockerfile import context_names, dockerfile
from pytest_sandbox.images.installing import install_commands
from pytest_sandbox.images.name import image_hash
from pytest_sandbox.images.requirements import NOTHING, Repository
from pytest_sandbox.targets import FAMILIES, Target
from tests.unit.images.making import FAMILIES as BASES
from tests.unit.images.making import KEY, apt_repository, needs, spec_for


def text_for(family, packages=("jq",), **keywords):
    certificates = keywords.pop("certificates", ())
    spec = spec_for(
        needs(packages, family=family, **keywords),
        Target("linux", "amd64", family),
        certificates=certificates,
    )
    return dockerfile(spec)


def test_from_then_labels():
    spec = spec_for(needs(["jq"]))
    first, second, *_ = dockerfile(spec).splitlines()
    assert first == f"FROM {BASES['debian'].image}"
    assert second == (
        f'LABEL org.pytest-sandbox.family="debian" org.pytest-sandbox.hash="{image_hash(spec)}"'
    )
    assert dockerfile(spec).endswith("\n")


def test_a_plain_base_is_one_line():
    assert dockerfile(spec_for(NOTHING)) == f"FROM {BASES['debian'].image}\n"
    assert context_names(spec_for(NOTHING)) == ("Dockerfile",)


@pytest.mark.parametrize(
    ("family", "words"),
    [
        (
            "debian",
            [
                "DEBIAN_FRONTEND=noninteractive",
                "APT::Update::Error-Mode=any",
                "Acquire::Retries=3",
                "--no-install-recommends",
                "exit 101",
                "rm -rf /var/lib/apt/lists/*",
            ],
        ),
        ("rhel", ["install_weak_deps=False", "tsflags=nodocs", "retries=5", "ulimit -n 65536"]),
        ("arch", ["set -- -Syu", "--noconfirm --needed jq", "DisableSandbox"]),
        ("alpine", ["set -- --no-cache", "apk add"]),
        ("suse", ["--non-interactive", "--no-recommends", "102|103", "106)", "107)"]),
    ],
)
def test_every_familys_own_practice(family, words):
    text = text_for(family)
    for word in words:
        assert word in text


@pytest.mark.parametrize("family", FAMILIES)
def test_packages_are_sorted_and_quoted(family):
    text = text_for(family, ("zlib", "a+b"))
    assert re.search(r"a\+b zlib\b", text)
    (quoted,) = install_commands(family, ["$(id)"])
    assert quoted.count("'$(id)'") == quoted.count("$(id)") == 2


@pytest.mark.skipif(shutil.which("sh") is None, reason="sh is missing")
@pytest.mark.parametrize("family", FAMILIES)
def test_every_instruction_is_shell(family):
    manager = {"debian": "apt", "rhel": "dnf"}.get(family)
    repositories = ()
    if manager == "apt":
        repositories = (apt_repository(), Repository(manager="apt", kind="ppa", ppa="a/b"))
    elif manager == "dnf":
        repositories = (apt_repository(manager="dnf", suite="", components=()),)
    text = text_for(
        family, repositories=repositories, groups=("docker", "video"), certificates=["PEM"]
    )
    joined = text.replace("\\\n", "")
    scripts = [line[4:] for line in joined.splitlines() if line.startswith("RUN ")]
    assert len(scripts) >= 3
    for script in scripts:
        done = subprocess.run(["sh", "-n", "-c", script], capture_output=True, check=False)
        assert done.returncode == 0, (script, done.stderr)
    assert {line.split()[0] for line in joined.splitlines()} == {
        "FROM", "LABEL", "COPY", "RUN", "#",
    }  # fmt: skip


def test_layers_in_order():
    text = text_for(
        "debian", repositories=(apt_repository(),), groups=("docker",), certificates=["A", "B"]
    )
    places = [
        text.index(word)
        for word in (
            "COPY certificates/ /usr/local/share/ca-certificates/",
            "ca-certificates \\\n",
            "COPY keys/1500c1f56fa9e26b.key",
            "sources.list.d",
            "--no-install-recommends jq",
            "for group in docker",
        )
    ]
    assert places == sorted(places)


def test_apt_sources_are_signed_by_their_own_key():
    text = text_for("debian", repositories=(apt_repository(),))
    assert "'Types: deb' 'URIs: https://example.invalid/debian'" in text
    assert "'Suites: trixie' 'Components: main extra' \"Signed-By: $ring\"" in text
    assert "apt-key" not in text


def test_flat_apt_repositories():
    text = text_for("debian", repositories=(apt_repository(suite="", components=()),))
    assert "'Suites: ./' \"Signed-By" in text
    with pytest.raises(SpecError, match="needs components"):
        text_for("debian", repositories=(apt_repository(components=()),))


def test_loopback_repositories_need_no_certificates_of_the_distribution():
    plain = apt_repository(url="http://127.0.0.1:8080", suite="./", components=())
    assert "ca-certificates" not in text_for("debian", repositories=(plain,))


def test_dnf_sources_check_signatures():
    one = apt_repository(manager="dnf", suite="", components=(), url="https://x.invalid/$basearch")
    text = text_for("rhel", repositories=(one,))
    assert "gpgcheck=1 gpgkey=file:///etc/pki/rpm-gpg/pytest-sandbox-" in text
    assert "'baseurl=https://x.invalid/$basearch'" in text
    with pytest.raises(SpecError, match=r"\.repo file"):
        text_for(
            "rhel", repositories=(apt_repository(manager="dnf", url="https://x.invalid/a.repo"),)
        )


def test_ppas_have_ubuntus_base_and_tool():
    text = text_for("debian", repositories=(Repository(manager="apt", kind="ppa", ppa="a/b"),))
    assert text.startswith("FROM docker.io/library/ubuntu:24.04\n")
    assert "software-properties-common" in text
    assert "add-apt-repository -y --no-update ppa:a/b" in text


def test_the_context_is_a_list():
    spec = spec_for(
        needs(["jq"], repositories=(apt_repository(), apt_repository(suite="sid"))),
        certificates=["A", "B"],
    )
    assert context_names(spec) == (
        "Dockerfile",
        "certificates/pytest-sandbox-00.crt",
        "certificates/pytest-sandbox-01.crt",
        f"keys/{KEY[:16]}.key",
    )


def test_groups_by_the_machines_own_sh(tmp_path):
    group = tmp_path / "group"
    group.write_text("root:x:0:\nvideo:x:44:\nother:x:999:\n")
    text = text_for("debian", ("jq",), groups=("docker", "video"))
    script = (
        text[text.index("for group in") :].replace("\\\n", "").replace("/etc/group", str(group))
    )
    script = script.replace("command -v", "false")
    subprocess.run(["sh", "-c", script], check=True)
    assert group.read_text().splitlines()[2:] == ["other:x:999:", "docker:x:998:"]

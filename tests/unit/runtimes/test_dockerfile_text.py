"""The reader of our own Dockerfiles: everything that is generated, and nothing by halves."""

from __future__ import annotations

import pytest

from pytest_sandbox.errors import Blame, BuildFailed
from pytest_sandbox.images.dockerfile import certificate_commands, group_commands
from pytest_sandbox.images.installing import install_commands
from pytest_sandbox.images.repositories import ppa_sources
from pytest_sandbox.runtimes.oci import dockerfile_text as text

FAMILIES = ("debian", "rhel", "arch", "alpine", "suse")


def one(line: str) -> text.Instruction:
    return text.parse(f"FROM x\n{line}\n")[1]


def test_lines_are_joined_as_docker_joins_them():
    found = text.parse(
        "# a comment\n\n  from base:1\nRUN one \\\n   two\\\n# inside\n\n three\\\\\nrun\tx  \n"
    )
    assert [(i.line, i.word, i.text) for i in found] == [
        (3, "FROM", "base:1"),
        (4, "RUN", "one    two three\\\\"),
        (9, "RUN", "x"),
    ]
    assert str(found[1]) == "RUN one    two three\\\\"


@pytest.mark.parametrize("family", FAMILIES)
def test_everything_that_is_generated_is_read(family: str):
    commands = [
        *certificate_commands(family, 2),
        *install_commands(family, ("jq", "g++")),
        *group_commands(("docker",)),
        ppa_sources(["a/b"]),
    ]
    found = text.parse("\n".join(["FROM base", 'LABEL a.b="c" d="e"', *commands]) + "\n")
    assert len(found) == 2 + len(commands)
    for instruction, command in zip(found[2:], commands, strict=True):
        comment, _, joined = command.replace("\\\n", "").rpartition("\n")
        assert str(instruction) == joined
        assert instruction.packages == (("jq", "g++") if comment else ())
        if instruction.word == "RUN":
            assert text.shell_text(instruction) == instruction.text
        else:
            assert text.copy_of(instruction).sources == ("certificates/",)
    assert text.pairs_of(found[1]) == {"a.b": "c", "d": "e"}


def test_words():
    assert text.pairs_of(one('LABEL a="b \\" c" d=\'e "f"\' g=h=i k=')) == {
        "a": 'b " c',
        "d": 'e "f"',
        "g": "h=i",
        "k": "",
    }
    assert text.argument_of(one("ARG WHO")) == ("WHO", None)
    assert text.argument_of(one("ARG WHO='a b'")) == ("WHO", "a b")
    assert text.copy_of(one("COPY a b/ /c/")) == text.Copy(("a", "b/"), "/c/")
    assert text.single_of(one('WORKDIR "/a b"')) == "/a b"
    assert text.base_of(text.parse("FROM a/b:1@sha256:00")[0]) == "a/b:1@sha256:00"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("VOLUME /data", "the instruction VOLUME"),
        ("CMD x", "the instruction CMD"),
        ("ADD a b", "the instruction ADD"),
        ("RUN", "RUN without anything"),
        ("FROM y", "a second FROM"),
        ("RUN --mount=type=cache,target=/x y", "the option --mount=type=cache,target=/x"),
        ('RUN ["a", "b"]', "a list of words"),
        ("RUN cat <<EOF", "a here-document"),
        ("COPY --chown=1 a b", "COPY with '--chown=1'"),
        ('COPY ["a", "b"]', "COPY with '[a,'"),
        ("COPY a", "a source and a target"),
        ("COPY *.txt /x/", "the source '*.txt'"),
        ("COPY ../a /x", "the source '../a'"),
        ("ENV NAME value", "NAME=VALUE"),
        ("LABEL a=$B", "a variable in LABEL"),
        ("LABEL a='b", "No closing quotation"),
        ("ARG 1=2", "ARG '1=2'"),
        ("USER a b", "USER with 2 words"),
    ],
)
def test_what_is_not_read_is_named_by_its_line(line: str, said: str):
    readers = {
        "RUN": text.shell_text,
        "COPY": text.copy_of,
        "ENV": text.pairs_of,
        "LABEL": text.pairs_of,
        "ARG": text.argument_of,
        "USER": text.single_of,
    }
    with pytest.raises(BuildFailed) as caught:
        readers.get(line.split(maxsplit=1)[0], str)(one(line))
    assert caught.value.what.startswith("line 2 of the Dockerfile")
    assert said in caught.value.what
    assert caught.value.blame is Blame.UNSUPPORTED
    assert caught.value.next_step


@pytest.mark.parametrize(
    ("whole", "said"),
    [
        ("", "does not begin with FROM"),
        ("RUN x\n", "does not begin with FROM"),
        ("FROM a AS b\n", "more than an image"),
        ("FROM --platform=x a\n", "more than an image"),
        ("FROM $BASE\n", "a variable in FROM"),
        ("# escape=`\nFROM a\n", "the escape character"),
    ],
)
def test_beginnings_that_are_not_read(whole: str, said: str):
    with pytest.raises(BuildFailed, match=said):
        text.base_of(text.parse(whole)[0])

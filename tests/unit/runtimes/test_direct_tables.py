"""Tables of system calls: how they are written, and what their answers mean."""

from __future__ import annotations

import errno
import json
import os
import struct

import pytest

from pytest_sandbox.errors import MissingDirectory
from pytest_sandbox.runtimes.oci.launchers.direct import hands
from pytest_sandbox.runtimes.oci.launchers.direct.command import (
    Command,
    Commands,
    Kind,
    Way,
    Wish,
    candidates,
)
from pytest_sandbox.runtimes.oci.launchers.direct.program import BUFFER, BULK, GIVEN, RESULTS
from pytest_sandbox.runtimes.oci.launchers.direct.staging import Staging
from pytest_sandbox.runtimes.oci.launchers.direct.tables import (
    HEAD,
    LONGEST,
    MAIN,
    NOT_MADE,
    NUMBERS,
    ROW,
    SILENT,
    Failed,
    Table,
    given,
)

ROOT = {"uid": 0, "gid": 0, "groups": [], "home": "/root"}
USER = {"uid": 7, "gid": 8, "groups": [8, 9], "home": "/home/u"}


def way(**values):
    found = Way(ROOT, {"PATH": "/bin:/sbin", "A": "x"}, [(7, 64, 64)], 1, "00" * 16,
                guarded=True, grouped=True, shared=True, score=0)  # fmt: skip
    return found._replace(**values)


def rows(table):
    data = table.message(3)
    count, _, place, _ = HEAD.unpack_from(data)
    return [ROW.unpack_from(data, place + index * ROW.size) for index in range(count)]


def text(table, address):
    return table.message(3)[address - BUFFER :].split(b"\0", 1)[0]


def names(table):
    return [call.name for call in table.calls]


def test_arguments_are_values_texts_or_places():
    table = Table()
    opened = table.call("openat", -100, b"/a/path", os.O_RDONLY)
    table.call("dup3", given(2), opened, 0)
    first, second = rows(table)
    assert first[0] == NUMBERS["openat"]
    assert first[2] == (1 << 64) - 100
    assert text(table, first[3]) == b"/a/path"
    assert (first[1], second[1]) == (0, 0b11)
    assert second[2:4] == (GIVEN + 8, RESULTS)


def test_a_copy_is_added_to_alone():
    table = Table()
    table.call("chdir", b"/one")
    other = table.copy()
    other.call("chdir", b"/two")
    assert (len(rows(table)), len(rows(other))) == (1, 2)
    assert table.message(3) == table.copy().message(3)


def test_results_are_read_and_checked():
    table = Table()
    table.call("chdir", b"/no", may=(errno.ENOENT,))
    table.call("mkdirat", 5, b"x", 0)
    table.call("setsid")
    told = table.results(struct.pack("=3q", -2, -17, NOT_MADE))
    assert told == [-2, -17, None]
    with pytest.raises(Failed, match="File exists: 'mkdirat x'") as wrong:
        table.check(told)
    assert wrong.value.row == 1
    table.check([-2, 0, 4])


def test_what_does_not_fit_goes_as_bulk():
    table = Table(bulk=True)
    assert table.place(b"x") == BULK
    assert table.place(b"y") == BULK + 8
    assert table.bulk == b"x" + bytes(7) + b"y" + bytes(7)
    assert table.message(3) == HEAD.pack(0, 0, HEAD.size, 3)
    table.place(bytes(8 << 20))
    with pytest.raises(OSError, match="too long"):
        table.message(3)


def test_too_many_descriptors_are_refused():
    with pytest.raises(OSError, match="more than 64 descriptors"):
        hands.send(None, b"", [0] * 65)


@pytest.mark.parametrize(
    ("gave", "hidden"),
    [
        ((0, -errno.ENOTDIR), True),
        ((-errno.ENOTDIR, 0), True),
        ((-errno.ENOENT, -errno.ENOENT), True),
        ((-errno.ENOTDIR, -errno.ENOENT), False),
        ((-errno.ENOTDIR, -errno.ENOTDIR), False),
    ],
)
def test_what_is_to_be_masked_is_masked_or_not_there(gave, hidden):
    staging = Staging(Table(), (("/proc/kcore", 1),))
    if hidden:
        staging.check([0, *gave])
    else:
        with pytest.raises(OSError, match=r"cannot be masked: '/proc/kcore'"):
            staging.check([0, *gave])


def test_a_way_can_be_written_as_json():
    assert Way(**json.loads(json.dumps(way()._asdict()))) == way(rlimits=[[7, 64, 64]])


def test_a_command_is_confined_before_its_program():
    command = Command(way(), Wish(["true"], {}, "/tmp"), 21)
    found = names(command.table)
    for earlier, later in (
        ("setsid", "close_range"),
        ("close_range", "prlimit64"),
        ("prlimit64", "prctl"),
        ("prctl", "setgroups"),
        ("setgroups", "chdir"),
        ("chdir", "execve"),
    ):
        assert found.index(earlier) < found.index(later)
    assert "setresuid" not in found
    assert found.count("execve") == 2
    other = names(Command(way(), Wish(["true"], {}, "/", USER), 21).table)
    assert other.index("setgroups") < other.index("setresgid") < other.index("setresuid")


def test_like_commands_are_written_once_and_are_the_same():
    commands = Commands(way())
    for wish in (
        Wish(["true"], {}, "/"),
        Wish(["sh", "-c", "x"], {"PATH": "/opt"}, "/tmp"),
        Wish(["true"], {}, "/", USER),
    ):
        again = [commands.command(wish, 21).table.message(~0) for _ in range(2)]
        assert again == [Command(way(), wish, 21).table.message(~0)] * 2


def marks(command):
    return next(row[1] for row in rows(command.table) if row[0] == NUMBERS["clone3"])


def test_who_is_answered():
    wish = Wish(["true"], {}, "/")
    assert marks(Command(way(), wish, 21)) & SILENT
    assert not marks(Command(way(), wish, -1)) & SILENT, "it is killed by its pid"
    main = marks(Command(way(), wish, 21, kind=Kind.MAIN))
    assert main & MAIN
    assert not main & SILENT


def test_long_words_are_bulk():
    command = Commands(way()).command(Wish(["true", "x" * LONGEST], {}, "/"), 21)
    assert len(command.table.bulk) > LONGEST
    assert len(command.table.message(~0)) < 4096


def results(command, clone, folder, *programs):
    """As a table gives them: before the clone all is well."""
    found = names(command.table)
    gave = [0] * len(found)
    gave[found.index("clone3")] = clone
    gave[found.index("chdir")] = folder
    begin = found.index("execve")
    gave[begin : begin + len(programs)] = programs
    return gave


def test_how_a_command_begins():
    command = Command(way(), Wish(["true"], {}, "/gone"), -1)

    def begun(*told):
        return command.begun(results(command, *told))

    assert begun(12, 0, -errno.ENOENT, None) == (12, 0)
    assert begun(12, 0, -errno.ENOENT, -errno.ENOENT) == (12, 127)
    assert begun(12, 0, -errno.EACCES, -errno.ENOENT) == (12, 126)
    with pytest.raises(MissingDirectory, match="'/gone' is no directory"):
        begun(12, -errno.ENOENT, None, None)
    with pytest.raises(OSError, match="too long"):
        begun(12, 0, -errno.E2BIG, -errno.E2BIG)
    with pytest.raises(BlockingIOError):
        begun(-errno.EAGAIN, None, None, None)
    gave = results(command, 12, None, None, None)
    gave[names(command.table).index("setgroups")] = -errno.EPERM
    with pytest.raises(PermissionError):
        command.begun(gave)


def test_programs_are_looked_for_as_a_shell_does():
    assert candidates(b"a/b", b"/bin") == [b"a/b"]
    assert candidates(b"a", b"/bin::/x") == [b"/bin/a", b"./a", b"/x/a"]
    assert candidates(b"a", b"")[-1].endswith(b"/a")

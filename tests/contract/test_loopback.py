"""Without a network a sandbox still has a loopback of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_sandbox.runtimes.base import System

# bash speaks TCP by itself; perl is in every Debian base and can listen.
_TALK = """
perl -MIO::Socket::INET -e 'my $s = IO::Socket::INET->new(Listen => 1, LocalPort => 8080) or die $!;
print { $s->accept } "hello\\n"' &
for i in 1 2 3 4 5 6 7 8 9; do
    if exec 3<>/dev/tcp/localhost/8080; then cat <&3; exit 0; fi 2>/dev/null
    sleep 0.2
done
exit 1
"""


def test_localhost_has_a_name_and_answers(start: Callable[..., System]):
    result = start().run(["bash", "-c", _TALK], timeout=20)
    assert result.stdout == "hello\n"


def test_each_sandbox_has_a_network_of_its_own(start: Callable[..., System]):
    show = ["readlink", "/proc/self/ns/net"]
    found = {start().run(show).stdout.strip(), start().run(show).stdout.strip()}
    assert len(found) == 2
    assert str(Path("/proc/self/ns/net").readlink()) not in found


def test_the_hosts_file_is_the_sandboxs_own(start: Callable[..., System]):
    one, two = start(), start()
    assert one.run(["sh", "-c", "echo 127.0.0.1 spoiled >>/etc/hosts"]).ok
    assert one.run(["getent", "hosts", "spoiled"]).ok
    assert not two.run(["getent", "hosts", "spoiled"]).ok
    assert not one.changes()

"""Hostile recipes end within their limits, with the right blame, and hurt nobody beside them."""

from __future__ import annotations

import http.server
import threading
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Recipe = "Callable[[str, str], Path]"

GOOD = """\
[[steps]]
action = "run_command"
command = "echo fine > /usr/local/share/fine"

[verify]
command = "cat /usr/local/share/fine"
pattern = "fine"
"""


def step(command: str, verify: str = "true") -> str:
    return (
        f"[[steps]]\naction = \"run_command\"\ncommand = '''{command}'''\n\n"
        f"[verify]\ncommand = '''{verify}'''\n"
    )


HASH = "0" * 64

CASES = {
    "fork-bomb": (
        step("b() { b | b & }; b; sleep 1; b; wait; exec false"),
        "install: *",
        ["--sandbox-pids", "64", "--sandbox-timeout", "20"],
    ),
    "memory-hog": (
        step("head -c 400000000 /dev/zero | tail"),
        "install: limit: hit the memory limit in memory-hog: step 1 (run_command)*",
        ["--sandbox-memory", "128m"],
    ),
    "endless-loop": (
        step("while :; do :; done"),
        "install: timeout: *3 s*in endless-loop: step 1 (run_command)*",
        ["--sandbox-timeout", "3"],
    ),
    "endless-verify": (
        step("true", verify="while :; do :; done"),
        "verify: timeout: *",
        ["--sandbox-timeout", "3"],
    ),
    "ignores-term": (
        step("trap '' TERM INT HUP; (trap '' TERM; setsid sleep 600 & sleep 600) & sleep 600"),
        "install: timeout: *",
        ["--sandbox-timeout", "3"],
    ),
    "waits-on-stdin": (
        step("printf 'Continue? [y/n] '; read answer"),
        "install: recipe: exit 1 in waits-on-stdin: step 1 (run_command)*",
        [],
    ),
    "loud": (
        step("head -c 1073741824 /dev/zero | tr '\\0' x"),
        "install: limit: hit the output limit in loud: step 1 (run_command)*",
        [],
    ),
    # Where neither reaches anything (process 1 of the direct launcher), their own status counts.
    "kills-its-parent": (step("kill -9 $PPID; sleep 1; exec false"), "install: recipe: *", []),
    "kills-everything": (step("kill -9 -1; sleep 1; exec false"), "install: recipe: *", []),
    "forges-by-exit": (step("exit 0", verify="false"), "verify: recipe: *", []),
    "forges-by-background": (
        step(
            "(while :; do for p in /proc/[0-9]*; do echo 0 > $p/fd/1; done; sleep 0.1; done)"
            " >/dev/null 2>&1 & true",
            verify="test -e /nonexistent",
        ),
        "verify: recipe: exit 1, expected 0: `test -e /nonexistent`*",
        [],
    ),
    "forges-by-files": (
        step(
            "mkdir -p /workspace/output; echo 0 > /workspace/output/.sandbox-verify-exit; "
            "echo good > /workspace/output/.sandbox-verify-output",
            verify="echo bad; exit 3",
        ),
        "verify: recipe: exit 3, expected 0: *",
        [],
    ),
    "forges-by-shell": (
        # /bin/sh itself lies from now on; a verify that must print something is not fooled
        step("true", verify="exit 1"),
        "verify: recipe: *",
        [],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_recipe_is_red_and_a_good_one_beside_it_is_green(
    name: str, recipe: Recipe, prove: Callable[..., pytest.RunResult]
) -> None:
    body, headline, options = CASES[name]
    recipe(name, body)
    recipe("zz-good", GOOD)
    result = prove(*options)
    result.assert_outcomes(failed=1, passed=1)
    shown = [line for line in result.outlines if line.startswith(headline.split(":")[0] + ": ")]
    assert shown, result.outlines
    pytest.LineMatcher(shown).fnmatch_lines([headline.replace("[", "[[]")])
    assert result.duration < 90


SHELL = "'; touch /tmp/owned; $(touch /tmp/owned) `touch /tmp/owned` && \\n\" | & > < * ? #"


REFUSED = {
    "package": f"action = 'apt_install'\npackages = ['''{SHELL}''']",
    "group": f"action = 'group_add'\ngroup = '''{SHELL}'''",
    "command": f"action = 'require_command'\ncommand = '''{SHELL}'''",
    "service": f"action = 'service_start'\nservice = '''{SHELL}'''",
    "repository": (
        f"action = 'apt_repo'\nurl = '''{SHELL}'''\n"
        f"key_url = 'https://k.invalid/k'\nkey_sha256 = '{HASH}'"
    ),
    "ppa": f"action = 'apt_ppa'\nppa = '''{SHELL}'''",
    "required": (
        f"action = 'require_system'\ncommand = 'x'\npackages = {{ apt = ['''{SHELL}'''] }}"
    ),
    "binaries": "action = 'install_binaries'\nbinaries = ['../../../../etc/passwd']",
    "chmod": "action = 'chmod'\nfiles = ['/etc/shadow']",
    "download": (
        "action = 'download_file'\nurl = 'https://x.invalid/a'\ndest = '../../a'\n"
        f"checksum = '{HASH}'"
    ),
    "extract": "action = 'extract'\narchive = 'a.tar'\nformat = 'tar'\ndest = '../..'",
}


@pytest.mark.parametrize("name", REFUSED)
def test_metacharacters_and_traversal_are_refused_before_anything_runs(
    name: str, recipe: Recipe, prove: Callable[..., pytest.RunResult]
) -> None:
    recipe("evil", "[[steps]]\n" + REFUSED[name] + '\n[verify]\ncommand = "true"\n')
    recipe("zz-good", GOOD)
    result = prove()
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.re_match_lines([r"^(resolve|image|install): recipe: .*"])


def test_metacharacters_in_free_text_stay_text(
    recipe: Recipe, prove: Callable[..., pytest.RunResult]
) -> None:
    recipe(
        "quoted",
        "[[steps]]\naction = \"set_env\"\nvars = [{ name = 'X', value = '''" + SHELL + "''' }]\n"
        "[[steps]]\naction = \"run_command\"\ncommand = 'true'\n"
        "[verify]\ncommand = 'test ! -e /tmp/owned && echo clean'\npattern = 'clean'\n",
    )
    prove().assert_outcomes(passed=1)


@pytest.fixture
def loopback_service() -> Iterator[tuple[int, list[str]]]:
    """A service on this machine's loopback, and what it was asked."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            del format, args

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_address[1], asked
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_hosts_loopback_is_out_of_reach(
    recipe: Recipe,
    prove: Callable[..., pytest.RunResult],
    loopback_service: tuple[int, list[str]],
) -> None:
    port, asked = loopback_service
    # Perl is essential on Debian; it tries the loopback and the gateway of its network.
    script = (
        "use IO::Socket::INET; open(R, '/proc/net/route'); my @a = ('127.0.0.1'); "
        "while (<R>) { my @f = split; push @a, join('.', reverse map { hex } $f[2] =~ /../g) "
        "if $f[1] eq '00000000' } my $n = 0; for my $h (@a) { my $s = IO::Socket::INET->new("
        f"PeerAddr => $h, PeerPort => {port}, Timeout => 3) or next; $n++; "
        'print $s "GET /stolen HTTP/1.0\\r\\n\\r\\n"; } exit($n ? 0 : 7)'
    )
    recipe(
        "reaches-out",
        step("perl -e '" + script.replace("'", '"') + "' "),
    )
    recipe("zz-good", GOOD)
    result = prove("--sandbox-network", "bridge")
    result.assert_outcomes(failed=1, passed=1)
    assert asked == []
    prove("--sandbox-network", "host", "recipes/reaches-out.toml")
    assert asked == ["/stolen"]  # the probe itself works

"""The same recipe has the same outcome whichever runtime is picked: item by item, word by word."""

from __future__ import annotations

import pytest

from tests.acceptance.running import run_pytest
from tests.recipes.site import serve

STEP = "[[steps]]\naction = \"run_command\"\ncommand = '''{}'''\n"
CHECK = "\n[verify]\ncommand = '''{}'''\n"


def step(command, verify="true"):
    return STEP.format(command) + CHECK.format(verify)


def action(name, rest, verify="true"):
    return f'[[steps]]\naction = "{name}"\n{rest}\n' + CHECK.format(verify)


RECIPES = {
    "good": step("echo 1.0 > /srv/v", "cat /srv/v") + 'pattern = "1.0"\n',
    "exit-of-a-step": step("exit 9"),
    "exit-of-the-check": step("true", "exit 4"),
    "pattern": step("true", "echo other") + 'pattern = "wanted"\n',
    "no-such-command": step("no-such-command-here"),
    "check-without-a-command": step("true", "no-such-command-here"),
    "killed": step("kill -9 $$"),
    "out-of-memory": step("head -c 400000000 /dev/zero | tail"),
    "loud": step("head -c 100000000 /dev/zero"),
    "slow": step("sleep 60"),
    "reads-input": step("read answer"),
    "no-such-package": action("apt_install", 'packages = ["no-such-package-xyz"]'),
    "package": action("apt_install", 'packages = ["hello"]', "hello"),
    "group": action("group_add", 'group = "sandboxers"', "getent group sandboxers"),
    "absent-download": action(
        "download_file",
        'url = "http://127.0.0.1:@PORT@/nothing.tar.gz"\ndest = "x"\nchecksum = "' + "0" * 64 + '"',
    ),
    "by-hand": action("manual", 'text = "ask a person"', "no-such-tool"),
    "unsupported": action("cargo_install", 'crate = "x"\nexecutables = ["x"]'),
    "no-check": STEP.format("true"),
    "no-network-in-the-check": step(
        "true", "test $(grep -c : /proc/net/dev) -eq 1 && test ! -e /sys/class/net/eth0"
    ),
    "home-and-folder": step(
        "echo $HOME $(pwd) $(id -un) $(umask) > /srv/seen", "cat /srv/seen; pwd; id; env | sort"
    ) + 'pattern = "no such pattern: the report shows the last lines"\n',
}
BLAMES = {"recipe", "limit", "timeout", "upstream"}


@pytest.fixture
def project(tmp_path):
    """A folder of recipes, and a server that has none of what they ask for."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "site").mkdir()
    with serve(tmp_path / "site") as port:
        for name, body in RECIPES.items():
            text = f'[metadata]\nname = "{name}"\n\n{body}'.replace("@PORT@", str(port))
            (tmp_path / "recipes" / f"{name}.toml").write_text(text)
        yield tmp_path


def last_lines(case):
    """The part of a report that shows what a command printed."""
    lines = [line.strip() for line in case.text.splitlines()]
    return [line for line in lines if line.startswith("| ")]


def test_each_item_ends_the_same_on_each_runtime(project, each_runtime):
    runs = {}
    for name in each_runtime:
        runs[name] = run_pytest(
            project, "--sandbox", f"--sandbox-runtime={name}", "--sandbox-target=debian",
            "--sandbox-memory=128m", "--sandbox-timeout=6", "--sandbox-output=16m", "recipes",
        )  # fmt: skip
        assert runs[name].status == 1, runs[name].output
    first, *others = runs.values()
    assert len(first.cases) == len(RECIPES)
    assert {told["blame"] for told in first.told().values() if told["blame"]} == BLAMES
    assert set(first.outcomes().values()) == {"passed", "failed", "skipped"}
    for other in others:
        assert other.outcomes() == first.outcomes()
        for name, case in first.cases.items():
            assert other.cases[name].told() == case.told(), name
            if case.told()["phase"] == "image" or case.told()["blame"] == "limit":
                continue  # what is shown there tells how quick it was
            assert last_lines(other.cases[name]) == last_lines(case), name

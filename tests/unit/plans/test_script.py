"""Plan -> operations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pytest_sandbox.errors import PlanError
from pytest_sandbox.plans.model import (
    Command,
    DependencyPlan,
    Fetch,
    Notice,
    Plan,
    PlatformSpec,
    RequireCommand,
    RequirePackages,
    Unpack,
)
from pytest_sandbox.plans.script import (
    compile_plan,
    install_dir,
    installation_order,
    verify_environment,
)
from tests.unit.plans.making import ALPINE, DEBIAN, SHA, catalogue, plan, recipe, step

ORDERS = json.loads(
    (Path(__file__).parents[2] / "data/plans/installation_order.json").read_text(encoding="utf-8")
)
URL = '"https://example.invalid/jq.tar.gz"'


def compiled(steps, **keywords):
    """The programs of a plan from the text of its steps."""
    return compile_plan(plan(steps, **keywords))


def operations(steps, action, **keywords):
    """The operations of the first step of `action`."""
    found = [one for one in compiled(steps, **keywords) if one.action == action]
    return found[0].operations


def refused(steps, **keywords):
    """The error of a plan that cannot be compiled."""
    with pytest.raises(PlanError) as wrong:
        compiled(steps, **keywords)
    return wrong.value


# -- order and folders -----------------------------------------------------------------------------


def test_a_tool_from_an_archive():
    steps = "\n".join(
        [
            step("download_file", url=URL, checksum=f'"{SHA.upper()}"', size=9),
            step("extract", archive='"jq.tar.gz"', format='"tar.gz"', strip_dirs=1, files='["jq"]'),
            step("chmod", files='["jq"]'),
            step("set_env", vars='[{ name = "JQ", value = "{install_dir}/it\'s" }]'),
            step("install_binaries", outputs='["jq"]'),
        ]
    )
    found = compiled(steps)
    assert [one.action for one in found] == [
        "prepare",
        "download_file",
        "extract",
        "chmod",
        "install_binaries",
        "finish",
        "set_env",
    ]
    assert found[1].operations == (
        Fetch(
            urls=("https://example.invalid/jq.tar.gz",),
            checksum=SHA,
            dest="/workspace/work/jq/jq.tar.gz",
            size=9,
        ),
    )
    assert found[2].operations == (
        Unpack(
            archive="/workspace/work/jq/jq.tar.gz",
            dest="/workspace/work/jq",
            format="tar.gz",
            strip=1,
            files=("jq",),
        ),
    )
    assert found[3].operations[0].argv == ("chmod", "0755", "--", "/workspace/work/jq/jq")
    bash, zsh = found[6].operations
    assert bash.path == "/workspace/tsuku/share/shell.d/00-env-jq@unversioned.bash"
    assert zsh.path.endswith(".zsh")
    assert bash.text == "export JQ='/workspace/tsuku/tools/jq-unversioned/it'\"'\"'s'\n"
    assert found[4].label == "jq: step 5 (install_binaries)"


def test_system_packages_alone_need_no_work_folder():
    (only,) = compiled(step("apt_install", packages='["jq", "git=1:2.3", "jq"]'))
    assert only.operations == (RequirePackages(manager="apt", packages=("git", "jq")),)


def test_libraries_lie_elsewhere_and_have_no_commands():
    fetch = step("download_file", url=URL, checksum=f'"{SHA}"')
    found = plan(fetch, metadata='type = "library"\nbinaries = ["bin/x"]', versions={"jq": "1"})
    assert install_dir(found) == "/workspace/tsuku/libs/jq-1"
    finish = compile_plan(found)[-1].operations[0]
    assert finish.argv[4:] == (
        "/workspace/work/jq",
        "/workspace/tsuku/libs/jq-1",
        "/workspace/tsuku/tools/current",
        "",
    )


def test_dependencies_come_first():
    known = catalogue(
        recipe(step("apt_install", packages='["a"]'), name="a", metadata='dependencies = ["b"]'),
        recipe(step("apt_install", packages='["b"]'), name="b"),
    )
    steps = step("apt_install", packages='["jq"]')
    found = compiled(steps, metadata='dependencies = ["a"]', catalogue=known)
    assert [one.tool for one in found] == ["b", "a", "jq"]


@pytest.mark.parametrize("case", ORDERS, ids=lambda case: "-".join(case["order"]) or "none")
def test_the_order_of_installation(case):
    def part(facts):
        below = [part(child) for child in facts.get("dependencies") or []]
        return DependencyPlan(tool=facts["tool"], version=facts["version"], dependencies=below)

    found = Plan(
        tool="root",
        platform=PlatformSpec(os="linux", arch="amd64"),
        dependencies=[part(facts) for facts in case["dependencies"] or []],
    )
    assert installation_order(found) == case["order"]


# -- refusals --------------------------------------------------------------------------------------


def test_actions_of_later_days():
    wrong = refused(step("cargo_install", crate='"x"', executables='["x"]'))
    assert wrong.what == "action cargo_install is not supported yet"
    assert wrong.blame == "unsupported"
    assert refused(step("download_archive", url='"https://x.invalid/{os}.zip"', binaries='["x"]'))


def test_a_missing_dependency():
    wrong = refused(step("manual", text='"x"'), metadata='dependencies = ["a"]')
    assert (wrong.blame, "which is in no recipe folder" in wrong.what) == ("unsupported", True)


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", "a\\\\b", "a\\nb"])
@pytest.mark.parametrize(
    ("action", "key", "others"),
    [
        ("download_file", "dest", {"url": URL, "checksum": f'"{SHA}"'}),
        ("extract", "archive", {"format": '"tar"'}),
        ("extract", "dest", {"archive": '"x.tar"', "format": '"tar"'}),
        ("run_command", "working_dir", {"command": '"true"'}),
    ],
)
def test_paths_stay_in_the_work_folder(action, key, others, path):
    wrong = refused(step(action, **others, **{key: f'"{path}"'}))
    assert f"{key}: " in wrong.what
    assert wrong.what.startswith("jq: step 1 (")


@pytest.mark.parametrize("item", ['"../x"', '"/x"', '{ src = "x", dest = "../x" }', "1", "{}"])
def test_binaries_stay_in_the_work_folder(item):
    assert refused(step("install_binaries", outputs=f"[{item}]")).blame == "recipe"


@pytest.mark.parametrize(
    ("action", "params", "what"),
    [
        ("chmod", {"files": "[]"}, "files: a list of paths is required"),
        ("chmod", {"files": '["a", 1]'}, "files: expected a list of strings"),
        ("chmod", {"files": '["a"]', "mode": '"u+s"'}, "mode: 'u+s'"),
        ("chmod", {"files": '["a"]', "mode": '"4755"'}, "mode: '4755'"),
        ("chmod", {"files": '["../a"]'}, "leaves the work folder"),
        ("extract", {"archive": '"a.rar"', "format": '"auto"'}, "format: 'auto'"),
        ("extract", {"archive": '"a.tar"', "format": '"tar"', "strip_dirs": "-1"}, "strip_dirs"),
        ("extract", {"archive": '"a.tar"', "format": '"tar"', "files": '["../a"]'}, "files"),
        ("install_binaries", {"outputs": "[]"}, "outputs: a list of files is required"),
        ("install_binaries", {"outputs": '["a"]', "install_mode": '"x"'}, "install_mode"),
        ("download_file", {"url": '"http://x.invalid/a"', "checksum": f'"{SHA}"'}, "url: "),
        ("download_file", {"url": '"file:///etc/x"', "checksum": f'"{SHA}"'}, "url: "),
        ("download_file", {"url": URL, "checksum": '"12"'}, "64 hex digits"),
        (
            "download_file",
            {"url": URL, "checksum": f'"{SHA}"', "checksum_algo": '"md5"'},
            "checksum_algo",
        ),
        ("set_env", {"vars": "[]"}, "vars"),
        ("set_env", {"vars": '[{ name = "a b", value = "x" }]'}, "no name of a variable"),
        ("set_env", {"vars": '[{ name = "A", value = "x\\ny" }]'}, "not one line"),
        ("require_command", {"command": '"x"', "min_version": '"1"'}, "min_version"),
    ],
)
def test_bad_parameters_are_named(action, params, what):
    assert what in refused(step(action, **params)).what


# -- single actions --------------------------------------------------------------------------------


def test_downloads_with_a_checksum_file_or_nothing():
    url = '"http://127.0.0.1:8080/{os}/jq"'
    (fetch,) = operations(step("download", url=url), "download_file")
    assert fetch.unverified
    assert fetch.dest == "/workspace/work/jq/jq"
    listed = step("download", url=url, checksum_url='"https://x.invalid/sums"')
    (fetch,) = operations(listed, "download_file")
    assert (fetch.unverified, fetch.checksum_url) == (False, "https://x.invalid/sums")
    known = step("download", url=url, sha256=f'"{SHA}"', fallback_urls='["https://x.invalid/jq"]')
    (fetch,) = operations(known, "download_file")
    assert fetch.checksum == SHA
    assert fetch.urls == ("http://127.0.0.1:8080/linux/jq", "https://x.invalid/jq")


def test_a_declared_signature_is_never_ignored():
    signed = step(
        "download", url=URL.replace("jq.", "{os}."), signature_url='"https://x.invalid/s"'
    )
    assert refused(signed).blame == "unsupported"


def test_run_command_is_the_recipes_own_text():
    (command,) = operations(
        step("run_command", command='"./install --prefix={install_dir}"', working_dir='"src"'),
        "run_command",
    )
    assert command.argv == ("/bin/sh", "-c", "./install --prefix=/workspace/work/jq/.install")
    assert command.cwd == "/workspace/work/jq/src"
    assert command.recipe_text
    assert command.network
    assert command.env["PATH"].startswith("/workspace/work/jq/.install/bin:/workspace/tsuku/")


def test_commands_that_want_sudo_are_skipped_aloud():
    (notice,) = operations(
        step("run_command", command='"ldconfig"', requires_sudo="true"), "run_command"
    )
    assert isinstance(notice, Notice)
    assert "ldconfig" in notice.text


def test_nothing_but_run_command_puts_recipe_text_into_a_shell():
    evil = "$(touch x)"
    steps = "\n".join(
        [
            step("install_binaries", outputs=f'["{evil}"]'),
            step("chmod", files=f'["{evil}", "-rf"]'),
        ]
    )
    for program in compiled(steps):
        for operation in program.operations:
            if isinstance(operation, Command) and operation.argv[0] == "/bin/sh":
                assert evil not in operation.argv[2]


def test_guidance_of_manual_steps():
    steps = step("manual", text='"get a GPU"') + "\n" + step("require_command", command='"nvcc"')
    manual, wanted = compiled(steps)
    assert manual.operations == (Notice(text="get a GPU", manual=True),)
    assert wanted.operations == (RequireCommand(command="nvcc", guidance="get a GPU"),)


def test_require_system():
    steps = step(
        "require_system",
        command='"docker"',
        version_flag='"--version"',
        version_regex='"([0-9.]+)"',
        min_version='"20.10"',
        primitives=(
            '[{ action = "apt", packages = ["docker.io"] }, { action = "group_add", '
            'group = "docker" }, { action = "service_start", service = "docker" }, '
            '{ action = "manual", text = "see the page" }]'
        ),
    )
    group, service, command = operations(steps, "require_system")
    assert group.argv[-1] == "docker"
    assert "no init" in service.text
    assert command == RequireCommand(
        command="docker",
        version_flag="--version",
        version_regex="([0-9.]+)",
        min_version="20.10",
        guidance="see the page",
    )


def test_every_managers_own_packages():
    for manager, family in (("apk", ALPINE), ("apt", DEBIAN)):
        found = operations(
            step(f"{manager}_install", packages='["jq"]'), f"{manager}_install", target=family
        )
        assert found == (RequirePackages(manager=manager, packages=("jq",)),)


def test_a_check_sees_the_variables_of_set_env():
    found = plan(step("set_env", vars='[{ name = "JQ_HOME", value = "{install_dir}" }]'))
    env = verify_environment(found)
    assert env["JQ_HOME"] == "/workspace/tsuku/tools/jq-unversioned"
    assert env["HOME"] == "/workspace"
    assert env["PATH"].startswith("/workspace/tsuku/tools/current:")

"""Each rule of lint, with its severity, key and line."""

from __future__ import annotations

import pytest

from pytest_sandbox.recipes.lint import lint_file, lint_text
from tests.unit.recipes.vectors import recipe_text

PLAIN = '[[steps]]\naction = "setup_build_env"\n'
HEX = "0" * 64


def step(action, rest=""):
    return f'[[steps]]\naction = "{action}"\n{rest}\n'


def found(text):
    return [(f.severity, f.key) for f in lint_text(text, "r.toml")]


def test_a_good_recipe_has_no_findings():
    text = recipe_text(
        step(
            "download",
            'url = "https://x.example/{version}/{os}/a.tar.gz"\nos_mapping = { linux = "Linux" }',
        )
        + step("extract", 'archive = "a.tar.gz"\nformat = "tar.gz"\nstrip_dirs = 1')
        + step("chmod", 'files = ["a"]\nmode = "0755"')
        + step("install_binaries", 'binaries = ["a", { src = "b", dest = "bin/b" }]')
        + step("set_env", 'vars = [{ name = "A_B", value = "{data_dir}" }]')
        + step("apt_install", 'packages = ["jq"]\nwhen = { os = ["linux"] }')
        + step(
            "apt_repo",
            'url = "https://x.example/d trixie main"\nkey_url = "https://x.example/k"\n'
            f'key_sha256 = "{HEX}"',
        )
        + step("download_file", f'url = "http://127.0.0.1:80/a"\nchecksum = "{HEX}"')
        + step("run_command", 'command = "make"\ndescription = "d"')
        + step("manual", 'text = "x"\nunless_command = "a"'),
        metadata='homepage = "https://x.example"\nruntime_dependencies = ["zlib"]',
    )
    assert [str(f) for f in lint_text(text)] == []


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ('homepage = "http://x.example"', ("error", "metadata.homepage")),
        ('homepage = "https://x.example/javascript:x"', ("error", "metadata.homepage")),
        ('version_format = "semvr"', ("warning", "metadata.version_format")),
        ('type = "libary"', ("error", "metadata.type")),
        ('runtime_dependencies = ["A"]', ("error", "metadata.runtime_dependencies[1]")),
        ('runtime_dependencies = ["a", "a"]', ("error", "metadata.runtime_dependencies[2]")),
        ('runtime_dependencies = ["-a"]', ("error", "metadata.runtime_dependencies[1]")),
        ('dependencies = ["../x"]', ("error", "metadata.dependencies[1]")),
        ('satisfies = { Brew = ["x"] }', ("error", "metadata.satisfies.Brew")),
        ('satisfies = { homebrew = ["a"] }', ("warning", "metadata.satisfies.homebrew")),
        ('supported_libc = ["uclibc"]', ("error", "metadata.supported_libc[1]")),
        ('supported_os = ["linus"]', ("warning", "metadata.supported_os[1]")),
        ("supported_arch = []", ("error", "metadata.supported_arch")),
        (
            'unsupported_platforms = ["linux/arm64/uclibc"]',
            ("error", "metadata.unsupported_platforms[1]"),
        ),
        ('unsupported_platforms = ["linux"]', ("warning", "metadata.unsupported_platforms[1]")),
        ('binaries = ["../x"]', ("error", "metadata.binaries[1]")),
        ('homepge = "x"', ("warning", "metadata.homepge")),
    ],
)
def test_metadata(metadata, expected):
    assert found(recipe_text(PLAIN, metadata=metadata)) == [expected]
    (finding,) = lint_text(recipe_text(PLAIN, metadata=metadata))
    assert finding.line == 4


def test_names_and_descriptions():
    text = recipe_text(PLAIN).replace('"a"', '"Abc"', 1).replace('"A"', '""')
    assert found(text) == [("warning", "metadata.name"), ("warning", "metadata.description")]


@pytest.mark.parametrize(
    ("rest", "expected"),
    [
        ('pattern = "a"\npatterns = ["b"]', ("error", "verify.patterns")),
        ("patterns = []", ("error", "verify.patterns")),
        ('patterns = ["a", ""]', ("error", "verify.patterns[2]")),
        ('mode = "functional"', ("error", "verify.mode")),
        ('mode = "outptu"', ("error", "verify.mode")),
        ('mode = "output"', ("error", "verify.mode")),
        ('[[verify.additional]]\ncommand = "x"', ("error", "verify.additional[1]")),
        ("[[patches]]\n", ("error", "patches[1]")),
        (f'[[patches]]\nurl = "x"\ndata = "y"\nchecksum = "{HEX}"', ("error", "patches[1]")),
        ('[[patches]]\nurl = "x"', ("error", "patches[1]")),
        ('[[patches]]\nurl = "x"\nchecksum = "12"', ("error", "patches[1].checksum")),
        ('[[patches]]\ndata = "x"\nsubdir = "a/../.."', ("error", "patches[1].subdir")),
        ('[[resources]]\nname = "x"\nchecksum = "xyz"', ("error", "resources[1].checksum")),
        ('[[resources]]\ndest = "../x"', ("error", "resources[1].dest")),
        ('[version]\nsource = "pypy"', ("warning", "version.source")),
        ('[version]\nurl = "http://x.example"', ("error", "version.url")),
        ('[version]\nsource = "http_json"\nurl = "https://x"', ("error", "version.source")),
        ('[version]\nversion = "1"', ("warning", "version.version")),
        ('[verification]\ncommand = "x"', ("warning", "verification")),
    ],
)
def test_other_tables(rest, expected):
    assert found(recipe_text(PLAIN, rest=rest + "\n")) == [expected]


@pytest.mark.parametrize("command", ["rm -r x", "a > /etc/x", "x | sh", "a || b", "$(x)", "`x`"])
def test_doubtful_checks(command):
    text = recipe_text(PLAIN).replace("a --version", command)
    assert found(text) == [("warning", "verify.command")]
    assert found(recipe_text(PLAIN).replace("a --version", "a 2>/dev/null 2>&1")) == []


@pytest.mark.parametrize(
    ("action", "rest", "expected"),
    [
        ("apt_install", "", ("error", "steps[1]")),
        ("apt_install", "packages = []", ("error", "steps[1].packages")),
        ("apt_install", 'packages = "jq"', ("error", "steps[1].packages")),
        ("require_command", 'command = "a"\nmin_version = "1"\nversion_flag = "-V"', None),
        (
            "require_command",
            'command = "a"\nversion_regex = "("',
            ("error", "steps[1].version_regex"),
        ),
        ("require_system", "", ("error", "steps[1]")),
        (
            "require_system",
            'command = "a"\npackages = { apt = [] }',
            ("error", "steps[1].packages.apt"),
        ),
        ("require_system", 'command = "a"\npackages = {}', ("error", "steps[1].packages")),
        (
            "require_system",
            'command = "a"\npackages = { apt = ["a"], pacmn = ["a"] }',
            ("warning", "steps[1].packages.pacmn"),
        ),
        (
            "require_system",
            'command = "a"\nprimitives = [{ action = "group_add" }]',
            ("error", "steps[1].primitives[1]"),
        ),
        (
            "require_system",
            'command = "a"\nprimitives = [{ action = "manual", text = "x", txt = "y" }]',
            ("warning", "steps[1].primitives[1].txt"),
        ),
        ("extract", 'archive = "a"\nformat = "tgx"', ("error", "steps[1].format")),
        ("extract", 'archive = "../a"\nformat = "zip"', ("error", "steps[1].archive")),
        ("extract", 'archive = "a"\nformat = "zip"\ndest = "/x"', ("warning", "steps[1].dest")),
        ("extract", 'archive = "a"\nformat = "zip"\ndest = "x/../y"', ("error", "steps[1].dest")),
        ("chmod", 'files = ["../a"]', ("error", "steps[1].files[1]")),
        ("chmod", 'files = ["a"]\nmode = "rwx"', ("error", "steps[1].mode")),
        ("install_binaries", 'binaries = ["/a"]', ("error", "steps[1].binaries[1]")),
        (
            "install_binaries",
            'binaries = [{ src = "a", dest = "bin/../../a" }]',
            ("error", "steps[1].binaries[1].dest"),
        ),
        ("install_binaries", 'binaries = ["a"]\noutputs = ["a"]', ("error", "steps[1]")),
        ("install_binaries", "", ("error", "steps[1]")),
        ("install_binaries", 'outputs = ["a"]\ninstall_mode = "dir"', None),
        ("download", 'url = "https://x.example/a"', ("error", "steps[1].url")),
        ("download", 'url = "http://x.example/{version}"', ("error", "steps[1].url")),
        ("download", 'url = "{version.url}"', "none"),
        ("download", f'url = "https://x/{{os}}"\nchecksum = "{HEX}"', None),
        ("download", 'url = "https://x/{os}"\nsignature_url = "https://x"', None),
        ("download", 'url = "https://x/{os}-1.2.3"', ("warning", "steps[1].url")),
        ("download_file", 'url = "https://x/a"\nchecksum = "abc"', ("error", "steps[1].checksum")),
        (
            "download_file",
            f'url = "https://x/a"\nchecksum = "{HEX}"\nchecksum_algo = "md5"',
            ("error", "steps[1].checksum_algo"),
        ),
        (
            "download_file",
            f'url = "https://x/a"\nchecksum = "{HEX}"\nfallback_urls = ["http://y.example/"]',
            ("error", "steps[1].fallback_urls[1]"),
        ),
        ("download_archive", 'url = "https://x/{os}.zip"', ("error", "steps[1]")),
        (
            "github_archive",
            'repo = "x"\nasset_pattern = "a-{version}"\nbinaries = ["a"]',
            ("error", "steps[1].repo"),
        ),
        ("github_file", 'repo = "o/r"\nasset_pattern = "a"', ("error", "steps[1]")),
        ("set_env", 'vars = [{ name = "1", value = "x" }]', ("error", "steps[1].vars[1]")),
        ("set_env", 'vars = [{ name = "A", value = "x\\ny" }]', ("error", "steps[1].vars[1]")),
        (
            "set_env",
            'vars = [{ name = "A", value = "x" }]\nphase = "install"',
            ("error", "steps[1].phase"),
        ),
        ("homebrew", 'formula = "a b"', ("error", "steps[1].formula")),
        ("apply_patch", 'url = "https://x/a"', ("error", "steps[1].url")),
        ("run_command", 'command = "x"\nrequires_sudo = true', None),
        ("run_command", 'command = "x"\ndependencies = ["../x"]', None),
        ("run_command", 'params = { command = "x" }', "two"),
        (
            "run_command",
            'command = "x"\nwhen = { os = ["windows"] }',
            ("error", "steps[1].when.os"),
        ),
        (
            "run_command",
            'command = "x"\nwhen = { platform = ["linux/i386"] }',
            ("error", "steps[1].when.platform"),
        ),
        ("run_command", 'command = "x"\nwhen = { libc = ["uclibc"] }', None),
        (
            "run_command",
            'command = "x"\nwhen = { gpu = ["nvdia"] }',
            ("error", "steps[1].when.gpu"),
        ),
        (
            "run_command",
            'command = "x"\nwhen = { arch = "x86_64" }',
            ("warning", "steps[1].when.arch"),
        ),
        ("run_command", 'command = "x"\nwhen = { linux_family = "_never" }', "none"),
        ("run_command", 'command = "x"\nwhen = { linux_family = "ubuntu" }', None),
        ("run_command", 'command = "x"\nwhen = { linux_family = ["debian"] }', None),
        ("run_command", 'command = "x"\nwhen = "linux"', ("warning", "steps[1].when")),
        ("run_command", 'command = "x"\nwhen = { os = 3 }', ("warning", "steps[1].when.os")),
        ("apk_install", 'packages = ["a"]\nwhen = { libc = ["glibc"] }', None),
        ("download", 'url = "https://x/{version}"\nos_mapping = { linux = "L" }', None),
        ("download", 'url = "https://x/{os}"\nos_mapping = { linx = "L" }', None),
    ],
)
def test_steps(action, rest, expected):
    keys = found(recipe_text(step(action, rest)))
    if expected == "none":
        assert keys == []
    elif expected == "two":
        assert keys == [("error", "steps[1]"), ("warning", "steps[1].params")]
    elif expected is None:
        assert len(keys) == 1
        assert keys[0][1].startswith("steps[1].")
    else:
        assert keys == [expected]


def test_libraries():
    text = (
        '[metadata]\nname = "a"\ndescription = "A"\ntype = "library"\n'
        + step("set_env", 'vars = [{ name = "A", value = "x" }]')
        + '[verify]\n[[verify.additional]]\ncommand = "x"\npattern = "y"\n'
    )
    assert found(text) == [("error", "steps[1]"), ("error", "verify.additional")]


def test_redundant_and_shadowed():
    text = recipe_text(
        step("npm_install", 'package = "a"\nexecutables = ["a"]\ndependencies = ["x"]'),
        metadata='dependencies = ["nodejs"]',
        rest='[version]\nsource = "npm"\n',
    )
    assert found(text) == [("warning", "steps[1].dependencies"), ("warning", "version.source")]


def test_a_recipe_that_does_not_load_has_suggestions_too(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text('[metdata]\nname = "a"\n[[steps]]\naction = "chmod"\n', encoding="utf-8")
    error, warning = lint_file(path)
    assert (error.severity, error.line) == ("error", 0)
    assert str(warning) == (
        f"{path}:1: warning: metdata: unknown table 'metdata' is ignored; did you mean 'metadata'?"
    )
    (missing,) = lint_file(tmp_path / "absent.toml")
    assert "No such file" in str(missing)


@pytest.mark.parametrize(
    "text",
    [
        "steps = 3",
        "steps = [3]",
        "[[steps]]\naction = 3",
        '[[steps]]\naction = "require_system"\nprimitives = [3, {}]\npackages = 3',
        "patches = [3]",
        "[metadata]\nname = 3",
        "verify = []",
    ],
)
def test_any_document_gets_an_error_and_no_crash(text):
    assert "error" in [finding.severity for finding in lint_text(text)]


def test_a_version_that_nothing_provides():
    assert found(recipe_text(PLAIN, rest='pattern = "{version}"\n')) == [("warning", "verify")]
    versioned = recipe_text(step("homebrew", 'formula = "a"'), rest='pattern = "{version}"\n')
    assert found(versioned) == []


@pytest.mark.parametrize(
    ("action", "rest", "key"),
    [
        ("github_archive", 'repo = [[1]]\nasset_pattern = "a"\nbinaries = ["a"]', "repo"),
        ("download", 'url = "https://x/{os}"\nchecksum_algo = [1]', "checksum_algo"),
        ("extract", 'archive = "a"\nformat = [1]', "format"),
    ],
)
def test_values_of_any_type_get_an_error_and_no_crash(action, rest, key):
    assert ("error", f"steps[1].{key}") in found(recipe_text(step(action, rest)))


def test_control_characters_do_not_reach_a_terminal():
    (finding,) = lint_text('[metadata]\nname = "\\u001b[31m\\n"\n')
    assert "\x1b" not in str(finding)
    assert "\n" not in str(finding)

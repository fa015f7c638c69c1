"""Composite actions become primitive ones when a plan is made (the registry's own names)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from pytest_sandbox.recipes.params import strings_of, text_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_sandbox.recipes.model import Patch, Recipe

Primitive = tuple[str, dict[str, Any]]
"""An action's name and its parameters."""

_FORMATS: Final = {
    ".tar.gz": "tar.gz",
    ".tgz": "tar.gz",
    ".tar.xz": "tar.xz",
    ".txz": "tar.xz",
    ".tar.bz2": "tar.bz2",
    ".tbz2": "tar.bz2",
    ".tar.zst": "tar.zst",
    ".tar.lz": "tar.lz",
    ".tar": "tar",
    ".zip": "zip",
}


def archive_format(name: str) -> str:
    """`tar.gz` for `x.tgz`; empty where the name does not tell."""
    return next((kind for suffix, kind in _FORMATS.items() if name.lower().endswith(suffix)), "")


def file_name(url: str) -> str:
    """The last part of a URL's path, without its query; empty where there is none."""
    return urlsplit(url).path.rpartition("/")[2]


def expand_composite(
    action: str, params: dict[str, Any], recipe: Recipe, version: str
) -> list[Primitive] | None:
    """What a composite becomes (parameters are expanded already), or None for any other action."""
    expansion = _EXPANSIONS.get(action)
    return None if expansion is None else expansion(params, recipe, version)


def patch_steps(patch: Patch) -> list[Primitive]:
    """What an entry of `[[patches]]` becomes."""
    params = {"strip": patch.strip or 1, **({"subdir": patch.subdir} if patch.subdir else {})}
    if patch.data:
        return [("apply_patch_file", {"data": patch.data, **params})]
    dest = file_name(patch.url)
    return [
        ("download_file", {"url": patch.url, "dest": dest, "checksum": patch.checksum}),
        ("apply_patch_file", {"file": dest, **params}),
    ]


def _keep(params: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: params[name] for name in names if name in params}


def _download(params: dict[str, Any], recipe: Recipe, version: str) -> list[Primitive]:  # noqa: ARG001
    found = dict(params)
    if not text_of(params, "dest"):
        found["dest"] = file_name(text_of(params, "url"))
    if checksum := text_of(params, "checksum") or text_of(params, "sha256"):
        found["checksum"] = checksum
    found.pop("sha256", None)
    return [("download_file", found)]


_FROM_ARCHIVE: Final = ("install_mode", "executables")
_FETCH: Final = ("checksum", "checksum_url", "checksum_algo", "fallback_urls")


def _archive(params: dict[str, Any], url: str, *, chmod: bool) -> list[Primitive]:
    name = file_name(url) or text_of(params, "asset_pattern")
    kind = text_of(params, "archive_format") or archive_format(name)
    binaries = params.get("binaries") or []
    steps: list[Primitive] = [
        ("download_file", {"url": url, "dest": name, **_keep(params, *_FETCH)}),
        ("extract", {"archive": name, "format": kind, **_keep(params, "strip_dirs")}),
    ]
    if chmod:
        steps.append(("chmod", {"files": _sources(binaries), "mode": "0755"}))
    steps.append(("install_binaries", {"outputs": binaries, **_keep(params, *_FROM_ARCHIVE)}))
    return steps


def _sources(binaries: Any) -> list[str]:
    found = []
    for item in binaries if isinstance(binaries, list) else []:
        source = item.get("src") if isinstance(item, dict) else item
        if isinstance(source, str):
            found.append(source)
    return found


def _download_archive(params: dict[str, Any], recipe: Recipe, version: str) -> list[Primitive]:  # noqa: ARG001
    return _archive(params, text_of(params, "url"), chmod=bool(params.get("binaries")))


def _release_url(params: dict[str, Any], recipe: Recipe, version: str) -> str:
    """The address of a release's asset; empty where its tag or name is not known here."""
    asset, repo = text_of(params, "asset_pattern"), text_of(params, "repo")
    if not version or not recipe.version.tag_prefix or any(ch in asset for ch in "*?["):
        return ""
    tag = recipe.version.tag_prefix + version
    return f"https://github.com/{repo}/releases/download/{tag}/{asset}"


def _github_archive(params: dict[str, Any], recipe: Recipe, version: str) -> list[Primitive]:
    return _archive(params, _release_url(params, recipe, version), chmod=True)


def _github_file(params: dict[str, Any], recipe: Recipe, version: str) -> list[Primitive]:
    binaries = params.get("binaries") or ([params["binary"]] if text_of(params, "binary") else [])
    dest = next(iter(_sources(binaries)), "")
    url = _release_url(params, recipe, version)
    return [
        ("download_file", {"url": url, "dest": dest, **_keep(params, *_FETCH)}),
        ("chmod", {"files": [dest], "mode": "0755"}),
        ("install_binaries", {"outputs": binaries}),
    ]


def _homebrew(params: dict[str, Any], recipe: Recipe, version: str) -> list[Primitive]:  # noqa: ARG001
    formula = text_of(params, "formula")
    archive = f"{formula.replace('/', '-')}.tar.gz"
    return [
        ("download_file", {"dest": archive}),
        ("extract", {"archive": archive, "format": "tar.gz", "strip_dirs": 2}),
        ("homebrew_relocate", {"formula": formula}),
    ]


def _fossil(params: dict[str, Any], recipe: Recipe, version: str) -> list[Primitive]:  # noqa: ARG001
    separator = text_of(params, "version_separator") or "."
    tag = (text_of(params, "tag_prefix") or "version-") + version.replace(".", separator)
    archive = f"{text_of(params, 'project_name')}-{version}.tar.gz"
    repo = text_of(params, "repo").rstrip("/")
    return [
        ("download_file", {"url": f"{repo}/tarball/{tag}/{archive}", "dest": archive}),
        (
            "extract",
            {"archive": archive, "format": "tar.gz", "strip_dirs": params.get("strip_dirs", 1)},
        ),
    ]


def _same(name: str) -> Callable[[dict[str, Any], Recipe, str], list[Primitive]]:
    def become(params: dict[str, Any], recipe: Recipe, version: str) -> list[Primitive]:  # noqa: ARG001
        return [(name, {**params, "version": version} if version else params)]

    return become


def _gem(params: dict[str, Any], recipe: Recipe, version: str) -> list[Primitive]:
    # bundler is what gem_exec itself runs with
    name = "install_gem_direct" if text_of(params, "gem") == "bundler" else "gem_exec"
    return _same(name)(params, recipe, version)


def _patch(params: dict[str, Any], recipe: Recipe, version: str) -> list[Primitive]:  # noqa: ARG001
    rest = _keep(params, "strip", "subdir")
    url = text_of(params, "url")
    if not url:
        return [("apply_patch_file", {"data": text_of(params, "data"), **rest})]
    dest = file_name(url)
    checksum = text_of(params, "sha256") or text_of(params, "checksum")
    return [
        ("download_file", {"url": url, "dest": dest, "checksum": checksum}),
        ("apply_patch_file", {"file": dest, **rest}),
    ]


_EXPANSIONS: Final[Mapping[str, Callable[[dict[str, Any], Recipe, str], list[Primitive]]]] = {
    "download": _download,
    "download_archive": _download_archive,
    "github_archive": _github_archive,
    "github_file": _github_file,
    "homebrew": _homebrew,
    "fossil_archive": _fossil,
    "npm_install": _same("npm_exec"),
    "pipx_install": _same("pip_exec"),
    "cargo_install": _same("cargo_build"),
    "gem_install": _gem,
    "go_install": _same("go_build"),
    "nix_install": _same("nix_realize"),
    "apply_patch": _patch,
}

COMPOSITES: Final = frozenset(_EXPANSIONS)
"""Actions that a plan never holds."""


def outputs_of(params: Mapping[str, Any]) -> list[Any]:
    """What an install_binaries step installs: `outputs`, or `binaries` as it was called before."""
    found = params.get("outputs", params.get("binaries"))
    if isinstance(found, list):
        return found
    return list(strings_of(params, "outputs"))

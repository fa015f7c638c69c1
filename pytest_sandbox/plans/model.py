"""Plan: the steps of one recipe for one target with everything filled in; JSON format_version 5.

And Operation: what a step comes to inside a sandbox. Operations are data; `sandbox.py` carries
them out.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from pytest_sandbox.recipes.model import Verify  # noqa: TC001 - msgspec reads the annotations

FORMAT_VERSION: Final = 5
OLDEST_FORMAT: Final = 2

HOME: Final = "/workspace"
TOOLS_HOME: Final = "/workspace/tsuku"
WORK: Final = "/workspace/work"
"""Folders inside a sandbox: HOME of its commands, where tools are installed, where a recipe's
steps work.
"""


class PlatformSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`platform`: linux_family only where the recipe has a step of a package manager."""

    os: str
    arch: str
    linux_family: str = ""


class PlanStep(msgspec.Struct, frozen=True, kw_only=True):
    """One step. `checksum` is SHA-256 in hex, `size` bytes.

    `source` is the index of the recipe's step (from 1, 0: not known) and `composite` the action
    that the recipe wrote where this step is a part of it; neither is written to JSON.
    """

    action: str
    params: dict[str, Any] = {}
    phase: str = ""
    evaluable: bool = False
    deterministic: bool = False
    url: str = ""
    checksum: str = ""
    size: int = 0
    source: int = 0
    composite: str = ""


class DependencyPlan(msgspec.Struct, frozen=True, kw_only=True):
    """A plan inside a plan: installed first."""

    tool: str
    version: str = ""
    dependencies: list[DependencyPlan] = []
    steps: list[PlanStep] = []
    verify: Verify | None = None
    recipe_type: str = ""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The steps of one recipe for one target. `version` is empty where nothing needs one.

    `obstacles` say why the plan cannot be carried out (a dependency that no recipe folder has);
    they are not written to JSON.
    """

    tool: str
    platform: PlatformSpec
    version: str = ""
    format_version: int = FORMAT_VERSION
    generated_at: str = ""
    recipe_source: str = ""
    deterministic: bool = False
    dependencies: list[DependencyPlan] = []
    steps: list[PlanStep] = []
    verify: Verify | None = None
    recipe_type: str = ""
    binaries: list[str] = []
    obstacles: list[str] = []


class Command(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Run `argv` in `cwd`; a status outside `expect` fails the step with `failure` (or a general
    text).

    `recipe_text` says that the recipe itself wrote what runs (run_command): such commands make the
    system untrusted for the verify phase, which then starts from a snapshot. `looks_only` says that
    a fixed text of ours runs and only reads: it leaves the system as trusted as it was.
    """

    argv: tuple[str, ...]
    cwd: str = WORK
    env: dict[str, str] = {}
    expect: tuple[int, ...] = (0,)
    failure: str = ""
    recipe_text: bool = False
    looks_only: bool = False
    network: bool = False


class Fetch(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The host downloads `urls` (in order until one serves it), checks it, and puts it at `dest`.

    `checksum` is hex. Where it is empty, `checksum_url` names a file that holds it: alone, or as
    the first word of the line that ends with the download's own name. Where both are empty the
    download is unverified: nobody ever wrote down what it should be.
    """

    urls: tuple[str, ...]
    checksum: str
    algorithm: str = "sha256"
    dest: str
    size: int = 0
    checksum_url: str = ""

    @property
    def unverified(self) -> bool:
        """Whether nothing says what the download should be."""
        return not self.checksum and not self.checksum_url


class Unpack(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Unpack `archive` (a path in the sandbox) into the folder `dest` there; the host checks every
    member.
    """

    archive: str
    dest: str
    format: str
    strip: int = 0
    files: tuple[str, ...] = ()


class WriteFile(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Write `text` to `path`; folders above it are made."""

    path: str
    text: str
    mode: int = 0o644


class RequireCommand(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """`command` must be on PATH; with `min_version` the first group of `version_regex` in what
    `command version_flag` prints must be that or newer. `guidance` is what a person should do
    where it is missing.
    """

    command: str
    version_flag: str = ""
    version_regex: str = ""
    min_version: str = ""
    guidance: str = ""


class RequirePackages(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Every package must be installed by `manager`."""

    manager: str
    packages: tuple[str, ...]


class Notice(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Something to tell the reader of the report; no effect (`manual`, services in a system
    without init).
    """

    text: str
    manual: bool = False


Operation = Command | Fetch | Unpack | WriteFile | RequireCommand | RequirePackages | Notice


class StepProgram(msgspec.Struct, frozen=True, kw_only=True):
    """A step of a plan as operations. `tool` is whose step it is; `label` is for reports: `jq:
    step 2 (extract)`.
    """

    tool: str
    label: str
    action: str
    operations: tuple[Operation, ...]

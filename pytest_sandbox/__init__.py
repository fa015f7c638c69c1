"""pytest-sandbox proves that software installs: the public names, sorted, and nothing else."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pytest_sandbox.errors import (
        Blame,
        BuildFailed,
        CheckFailed,
        CommandFailed,
        DownloadError,
        ImageUnavailable,
        InvalidImage,
        MissingDirectory,
        Phase,
        PlanError,
        RecipeError,
        RegistryError,
        RuntimeUnavailable,
        SandboxError,
        SandboxGone,
        SandboxTimeout,
        SpecError,
        StepFailed,
        UnknownUser,
        UsageError,
    )
    from pytest_sandbox.limits import Limits
    from pytest_sandbox.runtimes.base import (
        BuildRequest,
        Changes,
        ImageInfo,
        Mount,
        Owner,
        PathStat,
        Result,
        Runtime,
        RuntimeInfo,
        SandboxSpec,
        Stats,
        System,
    )
    from pytest_sandbox.runtimes.fake import FakeRuntime
    from pytest_sandbox.sandbox import Sandbox, Snapshot
    from pytest_sandbox.targets import Target

__all__ = [
    "Blame",
    "BuildFailed",
    "BuildRequest",
    "Changes",
    "CheckFailed",
    "CommandFailed",
    "DownloadError",
    "FakeRuntime",
    "ImageInfo",
    "ImageUnavailable",
    "InvalidImage",
    "Limits",
    "MissingDirectory",
    "Mount",
    "Owner",
    "PathStat",
    "Phase",
    "PlanError",
    "RecipeError",
    "RegistryError",
    "Result",
    "Runtime",
    "RuntimeInfo",
    "RuntimeUnavailable",
    "Sandbox",
    "SandboxError",
    "SandboxGone",
    "SandboxSpec",
    "SandboxTimeout",
    "Snapshot",
    "SpecError",
    "Stats",
    "StepFailed",
    "System",
    "Target",
    "UnknownUser",
    "UsageError",
]

_HOME: Final = {
    "BuildRequest": "runtimes.base",
    "Changes": "runtimes.base",
    "FakeRuntime": "runtimes.fake",
    "ImageInfo": "runtimes.base",
    "Limits": "limits",
    "Mount": "runtimes.base",
    "Owner": "runtimes.base",
    "PathStat": "runtimes.base",
    "Result": "runtimes.base",
    "Runtime": "runtimes.base",
    "RuntimeInfo": "runtimes.base",
    "Sandbox": "sandbox",
    "SandboxSpec": "runtimes.base",
    "Snapshot": "sandbox",
    "Stats": "runtimes.base",
    "System": "runtimes.base",
    "Target": "targets",
}


def __getattr__(name: str) -> object:
    # Imported on first use: pytest imports this package in every run of the environment.
    if name not in __all__:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(f"{__name__}.{_HOME.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]

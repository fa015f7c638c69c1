"""What of a recipe applies to a target: the step filter, and whether it is supported at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_sandbox.recipes.vocabulary import ACTIONS

if TYPE_CHECKING:
    from pytest_sandbox.recipes.model import Metadata, Recipe, Step
    from pytest_sandbox.targets import Target

DEFAULT_OS = ("linux", "darwin")
DEFAULT_ARCH = ("amd64", "arm64")


def steps_for(recipe: Recipe, target: Target) -> tuple[Step, ...]:
    """The steps that survive on `target`, in the recipe's order.

    A step stays if its action's built-in platform accepts the target and its `when` matches.
    """
    return tuple(
        step
        for step in recipe.steps
        if ACTIONS[step.action].runs_on(target) and (step.when is None or step.when.matches(target))
    )


def unsupported_reason(recipe: Recipe, target: Target) -> str:
    """Why the recipe's metadata rules the target out; empty means supported."""
    metadata = recipe.metadata
    reason = exclusion(metadata, target.os, target.arch, target.libc)
    if reason and metadata.unsupported_reason:
        reason = f"{reason} ({metadata.unsupported_reason})"
    return reason


def exclusion(metadata: Metadata, os_name: str, arch: str, libc: str) -> str:
    """Which key of `[metadata]` excludes the platform; empty where none does.

    An absent allowlist means the default, an empty one of os or arch means nothing; an empty
    supported_libc means all. Off Linux the C library is not consulted; `libc` may be empty.
    """
    if os_name not in _allowed(metadata.supported_os, DEFAULT_OS):
        return f"metadata.supported_os does not list {os_name}"
    if arch not in _allowed(metadata.supported_arch, DEFAULT_ARCH):
        return f"metadata.supported_arch does not list {arch}"
    denied = metadata.unsupported_platforms or ()
    if f"{os_name}/{arch}" in denied:
        return f"metadata.unsupported_platforms lists {os_name}/{arch}"
    if os_name == "linux":
        if libc and f"{os_name}/{arch}/{libc}" in denied:
            return f"metadata.unsupported_platforms lists {os_name}/{arch}/{libc}"
        if metadata.supported_libc and libc not in metadata.supported_libc:
            return f"metadata.supported_libc does not list {libc or 'an unknown C library'}"
    return ""


def platforms(metadata: Metadata) -> tuple[str, ...]:
    """Every `os/arch` that is allowed and not denied; denials with a libc do not count here."""
    denied = metadata.unsupported_platforms or ()
    return tuple(
        f"{os_name}/{arch}"
        for os_name in _allowed(metadata.supported_os, DEFAULT_OS)
        for arch in _allowed(metadata.supported_arch, DEFAULT_ARCH)
        if f"{os_name}/{arch}" not in denied
    )


def _allowed(written: list[str] | None, default: tuple[str, ...]) -> tuple[str, ...]:
    return default if written is None else tuple(written)

"""The one place where the registry client and the bounds on images are made from settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_sandbox.oci.bounds import Bounds
from pytest_sandbox.oci.reference import normal_registry
from pytest_sandbox.oci.registry import Registry
from pytest_sandbox.oci.retries import RetryRule
from pytest_sandbox.runtimes.oci.host_registries import host_registries

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_sandbox.settings import Settings


def open_registry(
    settings: Settings, environ: Mapping[str, str], say: Callable[[str], None]
) -> Registry:
    """The client that settings and this machine ask for; `say` gets a line for each retry.

    Mirrors that settings name for a registry stand in place of the machine's own for it; an http
    address of a mirror may be asked without TLS, since it was written that way. Raises UsageError.
    """
    mirrors, insecure = servers(settings, environ)
    return Registry(
        environ=environ,
        insecure=insecure,
        mirrors=mirrors,
        realms=settings.realms(),
        bounds=bounds_of(settings),
        timeout=settings.registry_timeout,
        rule=RetryRule(say=say),
    )


def servers(
    settings: Settings, environ: Mapping[str, str]
) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...]]:
    """Registry -> mirrors, and the registries and mirrors that may be asked by plain http."""
    host, own = host_registries(environ), settings.mirrors()
    mirrors = {**_by_registry(host.mirrors), **_by_registry(own)}
    plain = [url.split("/")[2] for urls in own.values() for url in urls if url[:5] == "http:"]
    return mirrors, tuple(dict.fromkeys((*settings.insecure(), *plain, *host.insecure)))


def _by_registry(mirrors: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """The same with one name for each registry: Docker Hub has several."""
    found: dict[str, tuple[str, ...]] = {}
    for name, urls in mirrors.items():
        found[normal_registry(name)] = (*found.get(normal_registry(name), ()), *urls)
    return found


def bounds_of(settings: Settings) -> Bounds:
    """The bounds on images, as far as they are set, else the defaults. Raises UsageError."""
    return Bounds(**settings.bounds())

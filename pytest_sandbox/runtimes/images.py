"""Built images at hand: each is built once, whoever needs it.

Whoever needs an image takes its lock, looks again, and builds only what nobody built meanwhile.
What is cached is used only after its architecture, content and age were checked.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import msgspec

from pytest_sandbox.clock import OFF
from pytest_sandbox.errors import Blame, BuildFailed, DownloadError, ImageUnavailable
from pytest_sandbox.images.dockerfile import certificate_name, dockerfile
from pytest_sandbox.images.name import FAMILY_LABEL, HASH_LABEL, PREFIX, image_hash, image_name
from pytest_sandbox.images.repositories import KEYS
from pytest_sandbox.images.sharing import beginning, dockerfile_upon
from pytest_sandbox.provision import bases
from pytest_sandbox.runtimes.base import BuildRequest
from pytest_sandbox.runtimes.bases import at_hand, ensure_base
from pytest_sandbox.runtimes.last_use import MAX_AGE, mark_used, rebuilt_in
from pytest_sandbox.runtimes.locks import image_lock

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_sandbox.clock import Clock
    from pytest_sandbox.images.sharing import Upon
    from pytest_sandbox.images.spec import ImageSpec
    from pytest_sandbox.limits import Limits
    from pytest_sandbox.runtimes.base import ImageInfo, Network, PullPolicy, Runtime

    Say = Callable[[str], None]

__all__ = ["EnsuredImage", "ensure_base", "ensure_image", "fetch_keys", "needs_network", "rebased"]

_BEGAN: Final = time.time()
"""When this process began to care for images: what it builds anew has package lists from then on.
"""
KEY_LIMIT: Final = 1 << 20
"""A repository's key has at most this many bytes."""


def _silent(line: str) -> None:
    del line


@dataclass(frozen=True, slots=True)
class EnsuredImage:
    """An image that sandboxes can start from. `hit`: it was at hand; `seconds`: what it took."""

    info: ImageInfo
    hit: bool
    seconds: float


def ensure_image(
    runtime: Runtime,
    spec: ImageSpec,
    *,
    prefix: str = PREFIX,
    rebuild: bool = False,
    rebuild_token: str = "",
    pull: PullPolicy = "missing",
    offline: bool = False,
    max_age: float = MAX_AGE,
    build_network: Network = "bridge",
    build_limits: Limits | None = None,
    build_timeout: float = 900.0,
    say: Say = _silent,
    environ: Mapping[str, str] | None = None,
    clock: Clock = OFF,
    upon: Callable[[], Upon | None] | None = None,
) -> EnsuredImage:
    """The spec's image, built where it is missing, of another architecture or older than `max_age`
    seconds. A plain spec's image is its base.

    One build per image over all workers and runs. `rebuild` builds anew, once for each
    `rebuild_token` (the run's id, the same in all its workers). `offline` forbids builds that
    install packages: ImageUnavailable, blame host. `upon` says, when it comes to a build, what the
    image may stand on instead of its base. Raises ImageUnavailable, DownloadError (a key),
    BuildFailed.
    """
    began = time.monotonic()
    environ = os.environ if environ is None else environ
    had_base = at_hand(runtime, spec.base, spec.target, pull) is not None
    if spec.plain:
        info = ensure_base(runtime, spec.base, spec.target, pull=pull, offline=offline, say=say)
        return EnsuredImage(info, had_base, time.monotonic() - began)
    spec = rebased(spec)
    name = image_name(spec, prefix)
    if not rebuild:
        cached = _fresh(runtime, spec, name, max_age, offline=offline)
        if cached is not None:
            mark_used(name)
            return EnsuredImage(cached, hit=True, seconds=time.monotonic() - began)
    base = ensure_base(runtime, spec.base, spec.target, pull=pull, offline=offline, say=say)
    # A base that was bootstrapped just now takes the pinned digest's place in the name.
    spec = rebased(spec)
    name = image_name(spec, prefix)
    with image_lock(image_hash(spec), say, what=f"the image {name}"):
        done = rebuilt_in(name)
        again = rebuild and not (rebuild_token and done.token() == rebuild_token)
        built = None if again else _fresh(runtime, spec, name, max_age, offline=offline)
        hit = built is not None
        if built is None:
            if offline and needs_network(spec):
                msg = f"the image {name} is not at hand, and this run is offline"
                raise ImageUnavailable(
                    msg, blame=Blame.HOST, next_step="run once without --sandbox-offline"
                )
            request = _request(
                spec, name, base, environ, offline=offline, say=say,
                network=build_network, limits=build_limits, timeout=build_timeout,
                lists_since=_BEGAN if rebuild else 0.0,
            )  # fmt: skip
            below = upon() if upon is not None else None
            what = f" on {below.base}" if below else ""
            say(f"building {name} for {spec.target}{what}")
            with clock.phase("build"):
                built = _built(runtime, request, below, say)
            say(f"built {name} in {time.monotonic() - began:.1f} s")
        if rebuild and rebuild_token:
            done.note(rebuild_token)
    mark_used(name)
    return EnsuredImage(built, hit, time.monotonic() - began)


def _built(runtime: Runtime, request: BuildRequest, upon: Upon | None, say: Say) -> ImageInfo:
    """Build it, on another image if there is one; alone where that does not do."""
    if upon is not None:
        text = dockerfile_upon(request.dockerfile, upon)
        files = {**request.files, "Dockerfile": text.encode()}
        try:
            return runtime.build(
                replace(request, dockerfile=text, files=files, ground=upon.ground), say
            )
        except BuildFailed as error:
            if error.blame in {Blame.TIMEOUT, Blame.LIMIT, Blame.NETWORK}:
                raise
            say(f"{request.name} cannot stand on {upon.base}; building it alone: {error.what}")
    return runtime.build(request, say)


def beginning_request(
    runtime: Runtime, spec: ImageSpec, *, environ: Mapping[str, str], rebuild: bool,
    network: Network, limits: Limits | None, timeout: float,
) -> BuildRequest | None:  # fmt: skip
    """The build of all that comes before a spec's packages, where its base is at hand."""
    base = at_hand(runtime, spec.base, spec.target)
    if base is None:
        return None
    return _request(
        beginning(spec), "beginning", base, environ, offline=True, say=_silent,
        network=network, limits=limits, timeout=timeout, lists_since=_BEGAN if rebuild else 0.0,
    )  # fmt: skip


def is_at_hand(runtime: Runtime, spec: ImageSpec, prefix: str, max_age: float) -> bool:
    """Whether the spec's image is there, and young enough."""
    spec = rebased(spec)
    return _fresh(runtime, spec, image_name(spec, prefix), max_age, offline=False) is not None


def rebased(spec: ImageSpec) -> ImageSpec:
    """The spec on the bootstrapped base, where there is one in the place of its pinned one."""
    base = bases.find_base(spec.base, spec.target.arch)
    digest = f"sha256:{base.sha256}" if base else ""
    if base is None or digest == spec.base_digest:
        return spec
    return msgspec.structs.replace(spec, base=base.reference, base_digest=digest)


def needs_network(spec: ImageSpec) -> bool:
    """Whether building reaches for package mirrors."""
    return bool(any(spec.packages.values()) or spec.repositories or spec.keys)


def _fresh(
    runtime: Runtime, spec: ImageSpec, name: str, max_age: float, *, offline: bool
) -> ImageInfo | None:
    """The cached image, if it is of the right architecture, content and age.

    Age alone does not condemn an image that offline could not build anew.
    """
    info = runtime.find_image(name)
    if info is None or info.arch != spec.target.arch:
        return None
    if info.labels.get(HASH_LABEL) != image_hash(spec):
        return None
    if time.time() - info.created > max_age and not (offline and needs_network(spec)):
        return None
    return info


def _request(
    spec: ImageSpec,
    name: str,
    base: ImageInfo,
    environ: Mapping[str, str],
    *,
    offline: bool,
    say: Say,
    network: Network,
    limits: Limits | None,
    timeout: float,
    lists_since: float,
) -> BuildRequest:
    from pytest_sandbox.limits import PROFILES
    from pytest_sandbox.provision.proxies import proxy_environment

    text = dockerfile(spec)
    if base.name != spec.base:
        text = text.replace(f"FROM {spec.base}\n", f"FROM {base.name}\n", 1)
    files = {certificate_name(at): pem.encode() for at, pem in enumerate(spec.certificates)}
    files |= fetch_keys(spec, environ, offline=offline, say=say)
    files["Dockerfile"] = text.encode()
    limits = PROFILES["build"] if limits is None else limits
    return BuildRequest(
        name=name,
        target=spec.target,
        dockerfile=text,
        files=files,
        labels={FAMILY_LABEL: spec.target.family, HASH_LABEL: image_hash(spec)},
        build_args=proxy_environment(environ),
        network=network,
        limits=replace(limits, timeout=timeout),
        timeout=timeout,
        lists_since=lists_since,
    )


def fetch_keys(
    spec: ImageSpec, environ: Mapping[str, str], *, offline: bool = False, say: Say = _silent
) -> dict[str, bytes]:
    """Name in the build context -> key, fetched by this machine and held against its SHA-256.

    Raises DownloadError in the phase `image`: upstream for another hash, 404 or more than 1 MiB.
    """
    if not spec.keys:
        return {}
    from pytest_sandbox.plans.downloads import Downloader

    loader = Downloader(
        bases.cache_dir(environ), offline=offline, max_bytes=KEY_LIMIT, say=say, environ=environ
    )
    found = {}
    for key in spec.keys:
        try:
            found[f"{KEYS}/{key.name}"] = loader.fetch([key.url], key.sha256).path.read_bytes()
        except DownloadError as error:
            error.phase = ImageUnavailable.phase
            error.what = f"repository key: {error.what}"
            raise
    return found

"""Base images at hand: there already, imported again, pulled or bootstrapped, each under a lock."""

from __future__ import annotations

import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from pytest_sandbox.errors import Blame, ImageUnavailable, SandboxError
from pytest_sandbox.images.name import HASH_LABEL
from pytest_sandbox.provision import bases
from pytest_sandbox.provision.bases import (
    BASE_LABEL,
    BASE_SHA_LABEL,
    SUITE_LABEL,
    Base,
    without_digest,
)
from pytest_sandbox.runtimes.locks import image_lock
from pytest_sandbox.targets import host_arch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_sandbox.runtimes.base import ImageInfo, PullPolicy, Runtime
    from pytest_sandbox.targets import Target

    Say = Callable[[str], None]

_RELEASES: Final = {
    "24.04": "noble",
    "22.04": "jammy",
    "20.04": "focal",
    "13": "trixie",
    "12": "bookworm",
}


def _silent(line: str) -> None:
    del line


def suite_of(reference: str) -> str:
    """The suite that a reference names (`debian:trixie-slim`: trixie), or empty."""
    from pytest_sandbox.provision.mirrors import distribution_of

    name = without_digest(reference)
    repository, colon, tag = name.rpartition(":")
    if not colon or "/" in tag or repository.rpartition("/")[2] not in {"debian", "ubuntu"}:
        return ""
    word = tag.split("-", 1)[0]
    word = _RELEASES.get(word, word)
    return word if distribution_of(word) else ""


def base_name(reference: str, arch: str) -> str:
    """The name that a bootstrapped base is imported under: the reference without its digest.

    An engine holds one architecture under a name, so one that is not this machine's gets it as a
    suffix: `debian:trixie-slim-arm64`.
    """
    name = without_digest(reference)
    return name if arch == host_arch() else f"{name}-{arch}"


def ensure_base(
    runtime: Runtime,
    reference: str,
    target: Target,
    *,
    pull: PullPolicy = "missing",
    offline: bool = False,
    say: Say = _silent,
) -> ImageInfo:
    """The base image at hand; its `name` is what FROM and sandboxes use.

    In this order: an image of that name and architecture; a base of ours that the engine has or,
    recorded, gets again; a pull; a bootstrap, said and done once. `offline` forbids the last two,
    `pull="never"` the third. Raises ImageUnavailable.
    """
    found = at_hand(runtime, reference, target, pull)
    if found is not None:
        return found
    with image_lock(f"base {base_name(reference, target.arch)}", say, what=f"the base {reference}"):
        found = at_hand(runtime, reference, target, pull)
        if found is None:
            found = _adopt(runtime, reference, target)
        if found is None:
            found = _import_recorded(runtime, reference, target, say)
        if found is None:
            found = _fetch(runtime, reference, target, pull=pull, offline=offline, say=say)
        return found


def bootstrap_base(
    runtime: Runtime,
    reference: str,
    target: Target,
    *,
    suite: str = "",
    mirror: str | None = None,
    say: Say = _silent,
) -> tuple[Base, ImageInfo]:
    """Make a base for `target` anew and import it in the place of `reference`.

    Raises ImageUnavailable: also where an image of somebody else has the name.
    """
    name = base_name(reference, target.arch)
    with image_lock(f"base {name}", say, what=f"the base {reference}"):
        return _bootstrap(runtime, reference, target, suite=suite, mirror=mirror, say=say)


def at_hand(
    runtime: Runtime, reference: str, target: Target, pull: PullPolicy = "missing"
) -> ImageInfo | None:
    """The base that `reference` means for `target`, if the engine has it (never with `always`)."""
    recorded = bases.find_base(reference, target.arch)
    if recorded is not None:
        found = runtime.find_image(base_name(reference, target.arch))
        if found is not None and found.labels.get(BASE_SHA_LABEL) == recorded.sha256:
            return found if found.arch == target.arch else None
        if "@" not in reference and found is not None and not _ours(found):
            # Names of images were made with the recorded content: another must not slip in.
            raise _taken(found.name)
    if pull == "always":
        return None
    found = runtime.find_image(reference)
    if found is None or found.arch != target.arch or (recorded is not None and _ours(found)):
        return None
    return found


def _ours(info: ImageInfo) -> bool:
    return info.labels.get(BASE_LABEL) == "1"


def _taken(name: str) -> ImageUnavailable:
    msg = f"the image {name} is not one that pytest-sandbox made, so it is not overwritten"
    return ImageUnavailable(
        msg,
        blame=Blame.HOST,
        next_step=f"remove it (docker rmi {name}), or name another base with --sandbox-base",
    )


def _adopt(runtime: Runtime, reference: str, target: Target) -> ImageInfo | None:
    """A base of ours on the engine that this user's record does not know: of another user or of a
    lost data directory. Its labels say what the record would."""
    if bases.find_base(reference, target.arch) is not None:
        return None
    found = runtime.find_image(base_name(reference, target.arch))
    sha256 = found.labels.get(BASE_SHA_LABEL, "") if found else ""
    # An image that was built on a base has the base's labels too, and one of its own.
    if found is None or found.arch != target.arch or not sha256 or HASH_LABEL in found.labels:
        return None
    bases.adopt_base(
        Base(
            reference=without_digest(reference),
            arch=found.arch,
            sha256=sha256,
            suite=found.labels.get(SUITE_LABEL, ""),
            created=found.created,
            size=found.size,
        )
    )
    return found


def _import_recorded(
    runtime: Runtime, reference: str, target: Target, say: Say
) -> ImageInfo | None:
    recorded = bases.find_base(reference, target.arch)
    if recorded is None:
        return None
    name = base_name(reference, target.arch)
    found = runtime.find_image(name)
    if found is not None and not _ours(found):
        return None
    with bases.open_tar(recorded) as tar:
        if tar is None:
            return None
        say(f"importing the bootstrapped base {name} again")
        return _load(runtime, tar, recorded, name, target)


def _load(runtime: Runtime, tar: IO[bytes], base: Base, name: str, target: Target) -> ImageInfo:
    before = runtime.find_image(name)
    info = runtime.load_rootfs(tar, name, target, bases.base_labels(base))
    if before is not None and before.digest != info.digest:
        # It has no name any more. Where images were built on it, it goes with the last of them.
        with suppress(SandboxError):
            runtime.remove_image(before.digest)
    return info


def _fetch(
    runtime: Runtime,
    reference: str,
    target: Target,
    *,
    pull: PullPolicy,
    offline: bool,
    say: Say,
) -> ImageInfo:
    if offline:
        msg = f"the base {reference} for {target.arch} is not at hand, and this run is offline"
        raise ImageUnavailable(
            msg, blame=Blame.HOST, next_step="run once without --sandbox-offline to fetch it"
        )
    failed: ImageUnavailable | None = None
    recorded = bases.find_base(reference, target.arch)
    if pull != "never" and (recorded is None or "@" in reference):
        try:
            found = runtime.pull(reference, target, say)
        except ImageUnavailable as error:
            failed = error
        else:
            if found.arch == target.arch:
                return found
            msg = f"{reference} is for {found.arch}, not for {target.arch}"
            raise ImageUnavailable(
                msg, blame=Blame.UPSTREAM, next_step="name a base of that architecture"
            )
    if target.family in _bootstrappers() and (suite_of(reference) or recorded is not None):
        if failed is not None:
            say(f"{reference} cannot be pulled; making a base from this machine's own mirror")
        try:
            return _bootstrap(runtime, reference, target, suite="", mirror=None, say=say)[1]
        except ImageUnavailable as error:
            if failed is not None:
                error.details = "\n".join(filter(None, (error.details, str(failed))))
            raise
    if failed is not None:
        raise failed
    msg = f"the base {reference} for {target.arch} is not at hand, and pulling is forbidden"
    raise ImageUnavailable(msg, blame=Blame.HOST, next_step=f"docker pull {reference}")


def _bootstrappers() -> Mapping[str, object]:
    from pytest_sandbox.provision.bootstrap import BOOTSTRAPPERS

    return BOOTSTRAPPERS


def _bootstrap(
    runtime: Runtime,
    reference: str,
    target: Target,
    *,
    suite: str,
    mirror: str | None,
    say: Say,
) -> tuple[Base, ImageInfo]:
    from pytest_sandbox.provision.bootstrap import BOOTSTRAPPERS

    make = BOOTSTRAPPERS.get(target.family)
    if make is None:
        known = ", ".join(BOOTSTRAPPERS)
        msg = f"a base of {target.family} cannot be bootstrapped (only {known} can, so far)"
        raise ImageUnavailable(
            msg, blame=Blame.UNSUPPORTED, next_step="use an engine that reaches a registry"
        )
    recorded = bases.find_base(reference, target.arch)
    suite = suite or suite_of(reference) or (recorded.suite if recorded else "")
    if not suite:
        msg = f"{reference} names no suite to bootstrap"
        raise ImageUnavailable(msg, blame=Blame.HOST, next_step="give --suite, like trixie")
    name = base_name(reference, target.arch)
    found = runtime.find_image(name)
    if found is not None and not _ours(found):
        raise _taken(name)
    with tempfile.TemporaryDirectory(prefix="pytest-sandbox-base-") as folder:
        tar = Path(folder, "base.tar")
        made = make(suite, target.arch, mirror, destination=tar, say=say)
        base = Base(
            reference=without_digest(reference),
            arch=made.arch,
            sha256=made.sha256,
            suite=made.suite,
            created=time.time(),
            size=made.size,
            mirror=made.mirror,
        )
        # Imported first, recorded then: a record without an image would give names to nothing.
        with tar.open("rb") as stream:
            info = _load(runtime, stream, base, name, target)
        base = bases.record_base(reference, made)
    say(f"{name} is ready: {suite} for {target.arch}, {base.size / 1e6:.0f} MB")
    return base, info

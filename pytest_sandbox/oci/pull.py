"""From a registry into the store: resolved, downloaded, unpacked, verified, and then recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from pytest_sandbox.errors import Blame, ImageUnavailable, UsageError
from pytest_sandbox.oci.adding import add_image
from pytest_sandbox.oci.applying import warm_up
from pytest_sandbox.oci.bounds import DEFAULT_BOUNDS, Bounds
from pytest_sandbox.oci.manifests import diff_ids, parse_config
from pytest_sandbox.oci.platforms import Platform, host_platform, normalise
from pytest_sandbox.oci.progress import Silent
from pytest_sandbox.oci.restoring import restore
from pytest_sandbox.oci.unpacking import LayerSource

if TYPE_CHECKING:
    from pytest_sandbox.oci.descriptors import Descriptor
    from pytest_sandbox.oci.images import Image
    from pytest_sandbox.oci.progress import Bar, Display
    from pytest_sandbox.oci.reference import Reference
    from pytest_sandbox.oci.registry import Registry
    from pytest_sandbox.oci.spool import Spool
    from pytest_sandbox.oci.store import Store

Policy = Literal["always", "missing", "never"]
POLICIES: Final = ("always", "missing", "never")


def pull(
    reference: Reference,
    *,
    store: Store,
    registry: Registry,
    platform: Platform | None = None,
    policy: Policy = "missing",
    keep_blobs: bool = True,
    bounds: Bounds = DEFAULT_BOUNDS,
    display: Display | None = None,
) -> Image:
    """The image that a reference stands for on a platform (this machine's), unpacked in the store.

    Policy `missing` asks the registry only if the image is not in the store, `always` asks whether
    it has changed, `never` does not ask. Without `keep_blobs` the packed layers are not kept: the
    image can then be neither pushed nor exported. An image whose layers cannot be used now is
    unpacked again from its archives, where they are here. Raises ImageUnavailable and its kin.
    """
    if policy not in POLICIES:
        msg = f"{policy!r} is no pull policy"
        raise UsageError(msg, next_step=f"use one of {', '.join(POLICIES)}")
    wanted = normalise(platform or host_platform())
    shown = display or Silent()
    there = store.image(reference, wanted)
    if there is not None and policy != "always":
        store.touch(there)
        return there
    if policy != "always":
        with store.locks.held("image", f"{reference}\n{wanted}", reference.familiar, shown.say):
            there = store.image(reference, wanted)  # another process may have been quicker
            there = there or restore(store, reference, wanted, say=shown.say)
        if there is not None:
            store.touch(there)
            return there
    if policy == "never":
        msg = f"{reference.familiar} for {wanted} is not in the store, and is not to be pulled"
        raise ImageUnavailable(
            msg,
            blame=Blame.HOST,
            next_step=f"pytest-sandbox image pull {reference.familiar}, or --pull=missing",
        )
    warm_up(store)
    with store.locks.held("image", f"{reference}\n{wanted}", reference.familiar, shown.say):
        there = store.image(reference, wanted)
        if there is not None and policy == "missing":  # another process was quicker
            store.touch(there)
            return there
        if (
            there is not None
            and _is_whole(store, there, keep_blobs=keep_blobs)
            and registry.current_digest(reference) == there.index
        ):
            store.touch(there)
            return there
        store.sweep_dead_work()
        resolved = registry.resolve(reference, wanted)
        blobs = resolved.manifest.layers
        diffs = diff_ids(parse_config(resolved.config, bounds), layers=len(blobs))
        return add_image(
            store,
            reference,
            resolved.config,
            [
                _Download(registry, reference, blob, shown).source(diff_id)
                for blob, diff_id in zip(blobs, diffs, strict=True)
            ],
            manifest=resolved.manifest,
            index=resolved.digest,
            refetch=policy == "always",
            keep_blobs=keep_blobs,
            bounds=bounds,
            say=shown.say,
        )


def _is_whole(store: Store, image: Image, *, keep_blobs: bool) -> bool:
    return not keep_blobs or all(
        layer.blob is not None and store.blobs.has(layer.blob.digest, layer.blob.size)
        for layer in image.layers
    )


class _Download:
    """One layer from a registry, and its bar."""

    def __init__(
        self, registry: Registry, reference: Reference, blob: Descriptor, display: Display
    ) -> None:
        self._registry = registry
        self._reference = reference
        self._blob = blob
        self._display = display
        self._bar: Bar | None = None

    def source(self, diff_id: str) -> LayerSource:
        """It, for `unpack_layers`."""
        return LayerSource(self._blob, diff_id, self._fetch, verified=True, done=self._done)

    def _new_bar(self) -> Bar:
        name = self._blob.digest.partition(":")[2][:12]
        self._bar = self._display.bar(name, self._blob.size)
        return self._bar

    def _fetch(self, spool: Spool) -> None:
        self._registry.blob(self._reference, self._blob, spool, self._new_bar())

    def _done(self) -> None:
        if self._bar is None:
            self._new_bar().finish("already here")
        else:
            self._bar.finish("unpacked")

"""From an index to the one image for a platform, and whether its config keeps the promise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pytest_sandbox.errors import Blame, ImageUnavailable, InvalidImage
from pytest_sandbox.oci.bounds import DEFAULT_BOUNDS, Bounds, raised
from pytest_sandbox.oci.manifests import Index, Manifest, config_platform, diff_ids, parse_config
from pytest_sandbox.oci.platforms import Platform, choose, runs

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_sandbox.oci.descriptors import Descriptor

_NESTED: Final = 16  # indexes of one index that are looked into for one platform


def find_manifest(
    top: Manifest | Index,
    wanted: Platform,
    fetch: Callable[[Descriptor], Manifest | Index],
    *,
    what: str,
    bounds: Bounds = DEFAULT_BOUNDS,
) -> tuple[Manifest, tuple[Index, ...]]:
    """The manifest for a platform, and the indexes on the way to it, outermost first.

    `fetch` gives a verified document by its descriptor; `what` names the image in errors. Direct
    entries come first, then nested indexes. Raises ImageUnavailable where there is none, and
    InvalidImage for indexes nested too deeply or a document that is not what its entry says.
    """
    if isinstance(top, Manifest):
        return top, ()
    return _find(top, wanted, fetch, what=what, bounds=bounds, depth=1)


def _find(
    index: Index,
    wanted: Platform,
    fetch: Callable[[Descriptor], Manifest | Index],
    *,
    what: str,
    bounds: Bounds,
    depth: int,
) -> tuple[Manifest, tuple[Index, ...]]:
    nested = [
        entry for entry in index.indexes() if entry.platform is None or runs(entry.platform, wanted)
    ]
    try:
        entry = choose(index.images(), wanted, what=what)
    except ImageUnavailable:
        if not nested:
            raise
    else:
        found = fetch(entry)
        if not isinstance(found, Manifest):
            problem = f"{what}: {found.digest} is an index where a manifest was named"
            raise InvalidImage(problem)
        return found, (index,)
    if depth >= bounds.index_depth:
        problem = f"{what}: its indexes are nested more than {bounds.index_depth} deep"
        raise InvalidImage(problem, next_step=raised("index_depth"))
    refused: ImageUnavailable | None = None
    for entry in nested[:_NESTED]:
        inner = fetch(entry)
        if not isinstance(inner, Index):
            problem = f"{what}: {inner.digest} is a manifest where an index was named"
            raise InvalidImage(problem)
        try:
            found, path = _find(inner, wanted, fetch, what=what, bounds=bounds, depth=depth + 1)
        except InvalidImage:
            raise
        except ImageUnavailable as error:
            if error.blame is not Blame.UNSUPPORTED:
                raise  # it could not be fetched
            refused = refused or error
        else:
            return found, (index, *path)
    assert refused is not None  # nested was not empty
    raise refused


def check_config(
    data: bytes,
    manifest: Manifest,
    wanted: Platform,
    *,
    what: str,
    bounds: Bounds = DEFAULT_BOUNDS,
) -> None:
    """Hold an image's config to its manifest and to the platform that was asked for.

    Its variant counts only where it is written: many images of arm leave it out. Raises
    InvalidImage, or ImageUnavailable for another platform.
    """
    config = parse_config(data, bounds)
    diff_ids(config, layers=len(manifest.layers))
    found = config_platform(config)
    same = (found.os, found.architecture) == (wanted.os, wanted.architecture)
    if same and (not config.get("variant") or runs(found, wanted)):
        return
    problem = f"{what} is made for {found}, not for {wanted}"
    raise ImageUnavailable(
        problem,
        blame=Blame.UNSUPPORTED,
        next_step=f"ask for it with --platform {found}, or take another image",
    )

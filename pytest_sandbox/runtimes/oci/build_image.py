"""An image in the making: its configuration, its history, its layers, and at last its record."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.oci.digests import hex_of
from pytest_sandbox.oci.images import ImageLayer, rfc3339
from pytest_sandbox.oci.reference import parse_reference
from pytest_sandbox.oci.store import Layer
from pytest_sandbox.oci.unpacking import chain_ids
from pytest_sandbox.runtimes.oci import images

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pytest_sandbox.oci.images import Image
    from pytest_sandbox.oci.store import Store, Work

_NOT_INHERITED: Final = ("rootfs", "history", "container", "container_config", "docker_version")
"""What a config says of how its own image came to be."""


@dataclass(frozen=True, slots=True)
class NewLayer:
    """A layer that was made: `folder` holds it as diff/, `size` is that of its archive."""

    folder: Path
    diff_id: str
    size: int


class Draft:
    """What a build has made so far, on top of the image `base`. Nothing of it is in the store yet.

    `layered`: each layer is a difference; else each is a whole tree, and the image has the last.
    """

    def __init__(self, store: Store, base: Image, *, layered: bool) -> None:
        self._store = store
        self._base = base
        self._layered = layered
        self._layers: list[NewLayer] = []
        self._document = {
            name: copy.deepcopy(value)
            for name, value in base.config.items()
            if name not in _NOT_INHERITED
        }
        self.config: dict[str, Any] = self._document.get("config") or {}
        self._document["config"] = self.config
        self._history = _history(base)

    @property
    def folders(self) -> tuple[str, ...]:
        """The folders of all layers, the lowest first."""
        below = [str(self._store.layer(key).diff) for key in self._base.keys]
        return (*below, *(str(layer.folder / "diff") for layer in self._layers))

    @property
    def document(self) -> dict[str, Any]:
        """The config of what there is, as a sandbox needs it."""
        return dict(self._document)

    @property
    def env(self) -> dict[str, str]:
        """The image's environment."""
        return dict(entry.partition("=")[::2] for entry in self.config.get("Env") or ())

    def set_env(self, values: Mapping[str, str]) -> None:
        """Add to the image's environment."""
        merged = {**self.env, **values}
        self.config["Env"] = [f"{name}={value}" for name, value in merged.items()]

    def label(self, values: Mapping[str, str]) -> None:
        """Add labels."""
        self.config["Labels"] = {**(self.config.get("Labels") or {}), **values}

    def note(self, created_by: str, layer: NewLayer | None = None) -> None:
        """One more line of history, with the layer that it made, if it made one."""
        entry: dict[str, Any] = {"created": rfc3339(time.time()), "created_by": created_by}
        if layer is None:
            entry["empty_layer"] = True
        else:
            self._layers.append(layer)
        self._history.append(entry)

    # --- the end ----------------------------------------------------------------------------

    def record(self, work: Work, name: str) -> Image:
        """Put the layers into the store and record the image under `name`.

        Where that fails, layers that were put there are set aside again.
        """
        store = self._store
        new = self._layers if self._layered else [self._whole()] if self._layers else []
        old = _identified(store, self._base) if self._layered or not new else ()
        diff_ids = [*(layer.diff_id for layer in old), *(layer.diff_id for layer in new)]
        keys = [hex_of(chain) for chain in chain_ids(diff_ids)][len(old) :]
        work.protect(layers=keys)
        parents = [old[-1].key if old else "", *keys]
        published: list[str] = []
        try:
            for key, parent, layer in zip(keys, parents, new, strict=False):
                if store.layers.get(key) is None:
                    made = Layer(
                        key, layer.folder, parent=parent, diff_id=layer.diff_id, bytes=layer.size
                    )
                    store.layers.publish(layer.folder, made)
                    published.append(key)
            above = [ImageLayer(key, one.diff_id) for key, one in zip(keys, new, strict=True)]
            config = {
                **self._document,
                "created": rfc3339(time.time()),
                "history": self._told(),
                "rootfs": {"type": "layers", "diff_ids": diff_ids},
            }
            return images.record(
                store,
                parse_reference(name),
                self._base.platform.architecture,
                config,
                (*old, *above),
            )
        except BaseException:
            for key in published:
                store.layers.discard(key)
            raise

    def _whole(self) -> NewLayer:
        last = self._layers[-1]
        if not last.diff_id:
            told = images.archive_of(self._store, last.folder / "diff")
            last = replace(last, diff_id=told["diff_id"], size=told["size"])
        return last

    def _told(self) -> list[dict[str, Any]]:
        if self._layered or not self._layers:
            return self._history
        filled = [entry for entry in self._history if not entry.get("empty_layer")]
        return [
            entry if entry is filled[-1] else {**entry, "empty_layer": True}
            for entry in self._history
        ]


def _identified(store: Store, image: Image) -> tuple[ImageLayer, ...]:
    """The layers of an image, with the diff ids that snapshots have not got yet."""
    found = []
    for layer in image.layers:
        there = store.layer(layer.key)
        diff_id = layer.diff_id or there.diff_id
        if not diff_id:
            diff_id = images.archive_of(store, there.diff)["diff_id"]
            store.layers.note(there, diff_id=diff_id)
        found.append(replace(layer, diff_id=diff_id))
    return tuple(found)


def _history(base: Image) -> list[dict[str, Any]]:
    """The base's history; one made up where it has none that fits its layers."""
    told = base.config.get("history")
    if isinstance(told, list) and all(isinstance(entry, dict) for entry in told):
        filled = sum(not entry.get("empty_layer") for entry in told)
        if filled == len(base.layers):
            return [dict(entry) for entry in told]
    created = rfc3339(base.created)
    name = base.reference.familiar
    return [{"created": created, "created_by": f"a layer of {name}"} for _ in base.layers]

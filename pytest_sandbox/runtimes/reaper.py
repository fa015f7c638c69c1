"""Remove what runs left on an engine: containers, snapshots, networks, dangling images.

Only what carries our label is looked at; nothing is ever found by name or by subtraction.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.errors import RuntimeUnavailable
from pytest_sandbox.images.name import HASH_LABEL
from pytest_sandbox.runtimes.owner import FOREIGN_AGE, LABEL, owner_from_labels
from pytest_sandbox.runtimes.run_folder import reap_folders

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_sandbox.runtimes.base import Owner

SNAPSHOT: Final = f"{LABEL}.snapshot"
"""Label of a snapshot; its value is `kept` for one that outlives its run (a cached install)."""


def remove_container(client: Any, container: str) -> None:
    """Kill and remove at once, and wait until it is gone; one that is gone is no error."""
    import docker.errors

    deadline = time.monotonic() + 20
    while True:
        try:
            client.remove_container(container, v=True, force=True)
            return
        except docker.errors.NotFound:
            return
        except docker.errors.APIError as exc:
            # 409: it removes itself already (AutoRemove).
            if exc.status_code != 409 and time.monotonic() > deadline - 15:
                msg = f"container {container[:12]} cannot be removed: {exc.explanation or exc}"
                raise RuntimeUnavailable(msg, next_step="remove it by hand") from exc
            if time.monotonic() > deadline:
                msg = f"container {container[:12]} is still being removed after 20 s"
                raise RuntimeUnavailable(msg, next_step="look at the engine's own log") from exc
            time.sleep(0.02)


def sweep(client: Any, run: str) -> int:
    """Remove everything that carries this run's label; the number of things removed."""
    return _collect(client, lambda owner, _created: owner.run == run, [f"{LABEL}.run={run}"])


def reap(client: Any, is_dead: Callable[[Owner, float], bool]) -> int:
    """Remove what dead owners left; the number of things removed."""
    count = _collect(client, is_dead, [])
    return count + _dangling(client) + reap_folders(is_dead)


def _collect(client: Any, goes: Callable[[Owner, float], bool], labels: list[str]) -> int:
    import docker.errors

    filters = {"label": [f"{LABEL}=1", *labels]}
    count = 0
    for entry in client.containers(all=True, filters=filters):
        if _goes(entry.get("Labels"), goes):
            with contextlib.suppress(RuntimeUnavailable):
                remove_container(client, entry["Id"])
                count += 1
    for entry in client.images(filters={"label": [SNAPSHOT, *labels]}):
        known = entry.get("Labels") or {}
        if known.get(SNAPSHOT) != "kept" and _goes(known, goes):
            with contextlib.suppress(docker.errors.APIError):
                client.remove_image(entry["Id"], force=True)
                count += 1
    for entry in client.networks(filters=filters):
        if _goes(entry.get("Labels"), goes):
            with contextlib.suppress(docker.errors.APIError):
                client.remove_network(entry["Id"])
                count += 1
    return count


def _goes(labels: Mapping[str, str] | None, goes: Callable[[Owner, float], bool]) -> bool:
    found = owner_from_labels(labels or {})
    return found is not None and goes(*found)


def _dangling(client: Any) -> int:
    """Remove what builds left that nobody works on any more, and their intermediate containers."""
    import docker.errors

    from pytest_sandbox.runtimes.locks import image_lock_is_free, image_lock_path

    count = 0
    for entry in client.images(filters={"label": [HASH_LABEL], "dangling": True}):
        digest = (entry.get("Labels") or {}).get(HASH_LABEL, "")
        # Without a lock file here the builder is one with another cache folder (another user):
        # whether it lives cannot be told, so its work goes by age alone.
        young = time.time() - float(entry.get("Created") or 0) < FOREIGN_AGE
        if young and not image_lock_path(digest).exists():
            continue
        with contextlib.suppress(docker.errors.APIError), image_lock_is_free(digest) as free:
            if not free:
                continue
            for left in client.containers(all=True, filters={"label": [f"{HASH_LABEL}={digest}"]}):
                # A sandbox carries the hash of its image, but it has an owner.
                if (left.get("Labels") or {}).get(LABEL) != "1":
                    with contextlib.suppress(RuntimeUnavailable):
                        remove_container(client, left["Id"])
                        count += 1
            client.remove_image(entry["Id"], force=False)
            count += 1
    return count

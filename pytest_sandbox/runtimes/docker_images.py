"""Images, snapshots and networks of a Docker-compatible engine."""

from __future__ import annotations

import calendar
import secrets
import time
from typing import IO, TYPE_CHECKING, Any, Final

from pytest_sandbox.errors import Blame, ImageUnavailable, RuntimeUnavailable
from pytest_sandbox.images.name import HASH_LABEL
from pytest_sandbox.runtimes.base import ImageInfo
from pytest_sandbox.runtimes.owner import LABEL, owner_labels
from pytest_sandbox.runtimes.reaper import SNAPSHOT
from pytest_sandbox.targets import arch_from_machine

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_sandbox.runtimes.base import Owner
    from pytest_sandbox.targets import Target

SNAPSHOTS: Final = "tsuku/sandbox-snapshot"


def posix_time(text: str) -> float:
    """Seconds from RFC 3339 with any number of decimals, in UTC as engines write it; 0 for none."""
    try:
        return float(calendar.timegm(time.strptime(text[:19], "%Y-%m-%dT%H:%M:%S")))
    except ValueError:
        return 0.0


def find_image(client: Any, reference: str) -> ImageInfo | None:
    """The image that `reference` names, if it is at hand."""
    import docker.errors

    try:
        found = client.inspect_image(reference)
    except docker.errors.NotFound:
        return None
    except docker.errors.APIError as exc:
        if exc.status_code == 400:
            return None
        raise
    return ImageInfo(
        name=reference,
        digest=found["Id"],
        arch=arch_from_machine(found.get("Architecture") or ""),
        created=posix_time(found.get("Created") or ""),
        size=int(found.get("Size") or 0),
        labels=(found.get("Config") or {}).get("Labels") or {},
    )


def images(client: Any) -> list[ImageInfo]:
    """Every named image with our label or a build's hash, each name once."""
    known: dict[str, ImageInfo] = {}
    for label in (LABEL, HASH_LABEL, SNAPSHOT):
        for entry in client.images(filters={"label": [label]}):
            for tag in entry.get("RepoTags") or ():
                name = _familiar(tag)
                if name not in known and name != "<none>:<none>":
                    found = find_image(client, name)
                    if found is not None:
                        known[name] = found
    return sorted(known.values(), key=lambda image: image.name)


def _familiar(name: str) -> str:
    """The name as Docker shows it; Podman writes the registry out."""
    short = name.removeprefix("docker.io/")
    return short.removeprefix("library/") if short != name else name


def remove_image(client: Any, reference: str) -> None:
    """Remove an image; one that is gone is no error."""
    import docker.errors

    try:
        client.remove_image(reference, force=True)
    except docker.errors.NotFound:
        return
    except docker.errors.APIError as exc:
        msg = f"image {reference} cannot be removed: {exc.explanation or exc}"
        raise RuntimeUnavailable(msg, next_step="close the sandboxes that use it") from exc


def split_reference(reference: str) -> tuple[str, str]:
    """(repository, tag or digest) of a reference; the tag is `latest` where there is none."""
    if "@" in reference:
        repository, _, digest = reference.partition("@")
        return repository, digest
    repository, colon, tag = reference.rpartition(":")
    if colon and "/" not in tag:
        return repository, tag
    return reference, "latest"


def pull(client: Any, reference: str, target: Target, say: Callable[[str], None]) -> ImageInfo:
    """Fetch an image from its registry. Raises ImageUnavailable, with whose fault it is."""
    import docker.errors
    import requests.exceptions

    repository, tag = split_reference(reference)
    said: set[str] = set()
    try:
        for event in client.pull(
            repository, tag=tag, stream=True, decode=True, platform=f"{target.os}/{target.arch}"
        ):
            if event.get("error"):
                raise _pull_error(reference, str(event["error"]))
            line = " ".join(str(event.get(key, "")) for key in ("id", "status")).strip()
            if line and line not in said:
                said.add(line)
                say(f"pull {reference}: {line}")
    except docker.errors.APIError as exc:
        raise _pull_error(reference, str(exc.explanation or exc)) from exc
    except requests.exceptions.RequestException as exc:
        msg = f"the engine stopped answering while it pulled {reference}: {exc}"
        raise ImageUnavailable(msg, blame=Blame.HOST) from exc
    found = find_image(client, reference)
    if found is None:
        msg = f"{reference} was pulled, but the engine does not have it"
        raise ImageUnavailable(msg, blame=Blame.HOST)
    return found


def _pull_error(reference: str, text: str) -> ImageUnavailable:  # noqa: PLR0911 - a table
    low = text.lower()
    what = f"{reference} cannot be pulled: {text[:300]}"
    registry = reference.partition("/")[0] if "." in reference.partition("/")[0] else "the registry"
    if "x509" in low or "certificate" in low or "tls" in low:
        return ImageUnavailable(
            what, blame=Blame.HOST, next_step="make the engine trust the registry's certificate"
        )
    if "toomanyrequests" in low or "rate limit" in low or " 429" in low:
        return ImageUnavailable(
            what, blame=Blame.NETWORK, next_step=f"log in to {registry}, or wait and try again"
        )
    if any(
        word in low for word in ("no matching manifest", "does not match the specified platform")
    ):
        return ImageUnavailable(
            what, blame=Blame.UPSTREAM, next_step="choose an image for this architecture"
        )
    if any(
        word in low
        for word in ("no such host", "dial tcp", "timeout", "refused", "eof", "reset by")
    ):
        return ImageUnavailable(
            what,
            blame=Blame.NETWORK,
            next_step="check the network, the proxy and the mirrors of the engine",
        )
    if any(
        word in low for word in ("unauthorized", "denied", "authentication required", "forbidden")
    ):
        return ImageUnavailable(
            what,
            blame=Blame.HOST,
            next_step=f"check the name, or log in to {registry} with `docker login`",
        )
    if any(word in low for word in ("not found", "manifest unknown", "name unknown")):
        return ImageUnavailable(
            what, blame=Blame.UPSTREAM, next_step="check the image's name and tag or digest"
        )
    return ImageUnavailable(
        what,
        blame=Blame.NETWORK,
        next_step="check the network, the proxy and the mirrors of the engine",
    )


def load_rootfs(
    client: Any, tar: IO[bytes], reference: str, target: Target, labels: Mapping[str, str]
) -> ImageInfo:
    """Import a root file system as a one-layer image. Raises ImageUnavailable."""
    import docker.errors

    from pytest_sandbox.runtimes.rootfs_archive import image_archive

    try:
        with (
            image_archive(tar, reference, target, labels) as pieces,
            client.post(
                client._url("/images/load"),
                data=pieces,
                params={"quiet": True},
                headers={"Content-Type": "application/x-tar"},
                timeout=None,
            ) as response,
        ):
            client._raise_for_status(response)
            text = response.text
    except docker.errors.APIError as exc:
        msg = f"the engine refused to import {reference}: {exc.explanation or exc}"
        raise ImageUnavailable(msg, blame=Blame.HOST) from exc
    found = find_image(client, reference)
    if found is None:
        msg = f"the engine did not import {reference}: {text.strip()[-300:]}"
        raise ImageUnavailable(msg, blame=Blame.HOST)
    return found


def _dockerfile_word(text: str) -> str:
    """A quoted word of a Dockerfile instruction."""
    if "\n" in text or "\r" in text:
        msg = f"{text!r}: a line break cannot be part of a label"
        raise ValueError(msg)
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$") + '"'


def commit(client: Any, container: str, name: str | None, labels: Mapping[str, str]) -> str:
    """Make a snapshot; its name.

    The container's labels, its owner's among them, go along. One with a `name` outlives its run.
    """
    repository, tag = split_reference(name) if name else (SNAPSHOTS, secrets.token_hex(8))
    whose = {SNAPSHOT: "1", f"{LABEL}.created": f"{time.time():.3f}"}
    if name:
        whose |= {SNAPSHOT: "kept", f"{LABEL}.run": ""}
    # As instructions: Podman passes over labels that come as a configuration.
    changes = [
        f"LABEL {_dockerfile_word(k)}={_dockerfile_word(v)}" for k, v in {**whose, **labels}.items()
    ]
    client.commit(container, repository=repository, tag=tag, changes=changes)
    return f"{repository}:{tag}"


def make_network(client: Any, owner: Owner) -> str:
    """This run's own bridge, on which sandboxes do not see each other; its id."""
    import docker.errors

    name = f"pytest-sandbox-{secrets.token_hex(4)}-{owner.pid}"
    try:
        found = client.create_network(
            name,
            driver="bridge",
            options={"com.docker.network.bridge.enable_icc": "false"},
            labels=owner_labels(owner, time.time()),
        )
    except docker.errors.APIError as exc:
        msg = f"the engine cannot make a network: {exc.explanation or exc}"
        raise RuntimeUnavailable(
            msg, next_step="remove unused networks with `docker network prune`"
        ) from exc
    return str(found["Id"])

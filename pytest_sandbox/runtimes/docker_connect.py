"""Connect to a Docker-compatible engine, and say clearly why it does not work."""

from __future__ import annotations

import errno
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from pytest_sandbox.errors import Blame, RuntimeUnavailable
from pytest_sandbox.runtimes.docker_context import Endpoint, candidates

if TYPE_CHECKING:
    from collections.abc import Mapping

PING_TIMEOUT: Final = 5.0
API_TIMEOUT: Final = 120.0
"""An engine under load may take this long for one answer (seconds)."""


def connect(endpoint: Endpoint, timeout: float = PING_TIMEOUT) -> Any:
    """A low-level client of the Docker SDK for `endpoint`. Raises RuntimeUnavailable that says what
    is wrong.
    """
    _knock(endpoint, timeout)
    import docker
    import docker.tls
    import requests.exceptions

    tls: Any = False
    if endpoint.tls_folder:
        folder = Path(endpoint.tls_folder)
        tls = docker.tls.TLSConfig(
            client_cert=(str(folder / "cert.pem"), str(folder / "key.pem")),
            ca_cert=str(folder / "ca.pem") if endpoint.tls_verify else None,
            verify=endpoint.tls_verify,
        )
    try:
        client = docker.APIClient(
            base_url=endpoint.url,
            version="auto",
            timeout=timeout,
            tls=tls,
            use_ssh_client=endpoint.url.startswith("ssh://"),
            max_pool_size=32,
        )
    except (docker.errors.DockerException, requests.exceptions.RequestException, OSError) as exc:
        raise _not_answering(endpoint, timeout, exc) from exc
    except (AttributeError, TypeError, ValueError) as exc:
        # The SDK reads Docker's config.json, and takes it for what it should be.
        msg = f"the Docker SDK could not read its configuration (config.json): {exc}"
        step = "correct ~/.docker/config.json, or the file of DOCKER_CONFIG"
        raise RuntimeUnavailable(msg, blame=Blame.HOST, next_step=step) from exc
    client.timeout = API_TIMEOUT
    if endpoint.socket is not None:
        # No proxy and no .netrc is meant for a local socket: the SDK need not look for them.
        client.trust_env = False
    return client


def _knock(endpoint: Endpoint, timeout: float) -> None:
    """Open and close a connection: the kernel tells apart what the SDK reports as one error."""
    where = f"{endpoint.url} ({endpoint.source})"
    try:
        if (path := endpoint.socket) is not None:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(timeout)
                sock.connect(str(path))
        elif endpoint.url.startswith(("tcp://", "http://", "https://")):
            parts = urlsplit(endpoint.url)
            with socket.create_connection((parts.hostname or "", parts.port or 2375), timeout):
                pass
    except PermissionError as exc:
        msg = f"permission denied on {where}"
        raise RuntimeUnavailable(
            msg,
            next_step="join the group that owns the socket (often `docker`) and log in again, "
            "or use a rootless engine",
        ) from exc
    except TimeoutError as exc:
        raise _not_answering(endpoint, timeout, exc) from exc
    except OSError as exc:
        if exc.errno == errno.ENOENT or isinstance(exc, FileNotFoundError):
            msg = f"no socket at {where}"
            step = "install and start Docker or Podman, or set DOCKER_HOST to where its socket is"
        elif exc.errno == errno.ECONNREFUSED:
            msg = f"nobody listens at {where}: the engine is not running"
            step = "start it, for example with `systemctl start docker`"
        else:
            msg = f"{where} cannot be reached: {exc.strerror or exc}"
            step = "check DOCKER_HOST and the network to the engine"
        raise RuntimeUnavailable(msg, next_step=step) from exc


def _not_answering(endpoint: Endpoint, timeout: float, exc: Exception) -> RuntimeUnavailable:
    reason = " ".join(str(exc).split())[:300]
    msg = f"the engine at {endpoint.url} ({endpoint.source}) does not answer within {timeout:g} s"
    if not isinstance(exc, TimeoutError) and "timed out" not in reason.lower():
        msg = f"the engine at {endpoint.url} ({endpoint.source}) gives no usable answer: {reason}"
    return RuntimeUnavailable(msg, next_step="look at the engine's own log, or restart the engine")


def connect_any(environ: Mapping[str, str], explicit: str = "") -> tuple[Any, Endpoint]:
    """Connect to the first candidate that works.

    Where all fail, the error that says most is raised: denied before silent before not running
    before missing.
    """
    errors: list[RuntimeUnavailable] = []
    for endpoint in candidates(environ, explicit):
        try:
            return connect(endpoint), endpoint
        except RuntimeUnavailable as exc:
            errors.append(exc)
    known = [exc for exc in errors if "no socket at" not in exc.what]
    if known or len(errors) == 1:
        raise (known or errors)[0]
    msg = "no container engine found: none of the usual sockets of Docker and Podman exists"
    raise RuntimeUnavailable(
        msg,
        next_step="install and start Docker or Podman, or set DOCKER_HOST to where its socket is",
    )

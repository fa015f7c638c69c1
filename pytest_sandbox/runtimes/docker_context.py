"""Where a Docker-compatible engine may answer: explicit endpoint, DOCKER_HOST, contexts, the usual
sockets.

Only reads: Docker's own configuration files, and which virtual machines of Lima and Colima have
sockets. Nothing is connected here, and no environment is written.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_sandbox.errors import Blame, RuntimeUnavailable

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One place to look: `url` like `unix:///var/run/docker.sock`, `source` says who named it."""

    url: str
    source: str
    tls_folder: str = ""
    """A folder with ca.pem, cert.pem and key.pem; empty for none."""
    tls_verify: bool = True
    named: bool = True
    """Somebody asked for this one: when it does not answer, no other is tried."""

    @property
    def socket(self) -> Path | None:
        """The socket's path of a unix endpoint."""
        return Path(self.url.removeprefix("unix://")) if self.url.startswith("unix://") else None


def candidates(environ: Mapping[str, str], explicit: str = "") -> list[Endpoint]:
    """The endpoints to try, best first. One that was named (explicit, DOCKER_HOST, a context)
    stands alone.
    """
    if explicit:
        return [_with_tls(explicit, "the setting", environ)]
    if environ.get("DOCKER_HOST"):
        return [_with_tls(environ["DOCKER_HOST"], "DOCKER_HOST", environ)]
    context = environ.get("DOCKER_CONTEXT") or _current_context(environ)
    if context and context != "default":
        return [_from_context(context, environ)]
    return default_sockets(environ)


def default_sockets(environ: Mapping[str, str]) -> list[Endpoint]:
    """The sockets that Docker and Podman use when nobody says otherwise."""
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    home = environ.get("HOME", "")
    paths = [("/var/run/docker.sock", "Docker")]
    if runtime:
        paths.append((f"{runtime}/docker.sock", "rootless Docker"))
    if home:
        paths += [
            (f"{home}/.docker/run/docker.sock", "Docker Desktop"),
            (f"{home}/.docker/desktop/docker.sock", "Docker Desktop"),
            (f"{home}/.colima/default/docker.sock", "Colima"),
            *_colima_profiles(Path(home)),
            (f"{home}/.rd/docker.sock", "Rancher Desktop"),
            (f"{home}/.orbstack/run/docker.sock", "OrbStack"),
        ]
    lima = environ.get("LIMA_HOME") or (f"{home}/.lima" if home else "")
    paths += _lima_machines(lima, "docker")
    if runtime:
        paths.append((f"{runtime}/podman/podman.sock", "rootless Podman"))
    paths += _lima_machines(lima, "podman")
    paths.append(("/run/podman/podman.sock", "Podman"))
    return [Endpoint(f"unix://{path}", source, named=False) for path, source in paths]


def _colima_profiles(home: Path) -> list[tuple[str, str]]:
    """The sockets of the profiles that somebody made beside `default`."""
    found = sorted((home / ".colima").glob("*/docker.sock"))
    return [
        (str(path), f"Colima {path.parent.name}") for path in found if path.parent.name != "default"
    ]


def _lima_machines(folder: str, engine: str) -> list[tuple[str, str]]:
    """The sockets that Lima forwards out of its virtual machines, by name of the machine."""
    if not folder:
        return []
    found = sorted(Path(folder).glob(f"*/sock/{engine}.sock"))
    return [(str(path), f"Lima {path.parent.parent.name}") for path in found]


def _with_tls(url: str, source: str, environ: Mapping[str, str]) -> Endpoint:
    verify = bool(environ.get("DOCKER_TLS_VERIFY"))
    folder = environ.get("DOCKER_CERT_PATH", "")
    if url.startswith("tcp://") and (verify or environ.get("DOCKER_TLS") or folder):
        return Endpoint(url, source, folder or str(_config_folder(environ)), verify)
    return Endpoint(url, source)


def _config_folder(environ: Mapping[str, str]) -> Path:
    if environ.get("DOCKER_CONFIG"):
        return Path(environ["DOCKER_CONFIG"])
    return Path(environ.get("HOME") or Path.home()) / ".docker"


def _current_context(environ: Mapping[str, str]) -> str:
    try:
        config = json.loads((_config_folder(environ) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    return str(config.get("currentContext") or "") if isinstance(config, dict) else ""


def _from_context(name: str, environ: Mapping[str, str]) -> Endpoint:
    digest = hashlib.sha256(name.encode()).hexdigest()
    folder = _config_folder(environ) / "contexts"
    path = folder / "meta" / digest / "meta.json"
    try:
        docker = json.loads(path.read_text(encoding="utf-8"))["Endpoints"]["docker"]
        host, skip = str(docker["Host"]), bool(docker.get("SkipTLSVerify"))
    except (OSError, ValueError, KeyError, TypeError) as exc:
        msg = f"Docker context {name!r} cannot be read from {path}"
        raise RuntimeUnavailable(
            msg, blame=Blame.HOST, next_step="list the contexts with `docker context ls`"
        ) from exc
    tls = folder / "tls" / digest / "docker"
    has_tls = host.startswith("tcp://") and tls.is_dir()
    return Endpoint(host, f"context {name}", str(tls) if has_tls else "", not skip)

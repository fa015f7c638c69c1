"""The host's extra CA certificates: what it trusts beyond the well-known public authorities.

A company's proxy signs with an authority of its own. Downloads on the host know it; a fresh Linux
system does not, and its first package download fails. So these certificates go into image builds
and sandboxes (design, rule 8).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import importlib.util
import os
import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

BUNDLE_VARIABLES: Final = (
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "PIP_CERT",
    "NODE_EXTRA_CA_CERTS",
    "GIT_SSL_CAINFO",
)
"""Variables of the host that name a file with certificates in it."""

SYSTEM_BUNDLES: Final = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Alpine, Arch
    "/etc/pki/tls/certs/ca-bundle.crt",  # RHEL, Fedora
    "/etc/ssl/ca-bundle.pem",  # SUSE
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
ANCHOR_FOLDERS: Final = (
    "/usr/local/share/ca-certificates",
    "/etc/pki/ca-trust/source/anchors",
    "/etc/ca-certificates/trust-source/anchors",
    "/etc/pki/trust/anchors",
)
"""Where an administrator adds authorities: what lies here is extra by definition."""

PUBLIC_FOLDERS: Final = (
    "/usr/share/ca-certificates",
    "/usr/share/pki/ca-trust-source",
    "/usr/share/pki/trust",
)
"""Where distributions put the public authorities (PEM, or p11-kit files with PEM in them)."""

FAMILY_BUNDLES: Final[Mapping[str, str]] = {
    "debian": "/etc/ssl/certs/ca-certificates.crt",
    "alpine": "/etc/ssl/certs/ca-certificates.crt",
    "arch": "/etc/ssl/certs/ca-certificates.crt",
    "rhel": "/etc/pki/tls/certs/ca-bundle.crt",
    "suse": "/etc/ssl/ca-bundle.pem",
}
"""Family -> the bundle that its `update-ca-certificates` (or like) writes."""

SANDBOX_VARIABLES: Final = (
    "SSL_CERT_FILE",
    "CURL_CA_BUNDLE",
    "REQUESTS_CA_BUNDLE",
    "PIP_CERT",
    "NODE_EXTRA_CA_CERTS",
    "GIT_SSL_CAINFO",
    "AWS_CA_BUNDLE",
    "CARGO_HTTP_CAINFO",
)

_PEM = re.compile(
    rb"-----BEGIN (?:TRUSTED |X509 )?CERTIFICATE-----([^-]+)-----END (?:TRUSTED |X509 )?"
    rb"CERTIFICATE-----",
    re.DOTALL,
)
_PEM_SUFFIXES = (".crt", ".pem", ".cer", ".p11-kit")


def extra_certificates(environ: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """The extra CA certificates as PEM texts, sorted by SHA-256 of their DER form, each once.

    They are those in the files that the host's variables (SSL_CERT_FILE, PIP_CERT ...) and
    SSL_CERT_DIR name, else in the system's bundle, minus the public ones (certifi's and the
    distribution's); and all that an administrator put into the anchor folders. What cannot be read
    is left out. Read once per process for equal variables.
    """
    environ = os.environ if environ is None else environ
    named = tuple(environ.get(name, "") for name in (*BUNDLE_VARIABLES, "SSL_CERT_DIR"))
    return _extra(named)


@lru_cache(maxsize=8)
def _extra(named: tuple[str, ...]) -> tuple[str, ...]:
    *bundles, folder = named
    files = [Path(name) for name in dict.fromkeys(bundles) if name]
    if folder:
        # A folder of hashed links usually holds the whole as one bundle too: much cheaper to read.
        for part in folder.split(":"):
            whole = Path(part) / "ca-certificates.crt"
            files += [whole] if whole.is_file() else _pem_files(Path(part))
    if not any(file.is_file() for file in files):
        files = [Path(name) for name in SYSTEM_BUNDLES if Path(name).is_file()][:1]
    trusted = _read({os.path.realpath(file): file for file in files}.values())
    extra = _read(file for name in ANCHOR_FOLDERS for file in _pem_files(Path(name)))
    if trusted.keys() - extra.keys():
        folders = (file for name in PUBLIC_FOLDERS for file in _pem_files(Path(name)))
        public = _read([*_certifi(), *folders])
        extra |= {key: der for key, der in trusted.items() if key not in public}
    return tuple(_pem(extra[key]) for key in sorted(extra))


def sandbox_ca_environment(
    family: str, certificates: tuple[str, ...] | None = None
) -> dict[str, str]:
    """Variables that point tools in a sandbox of `family` at its whole bundle; empty without extra
    certificates."""
    certificates = extra_certificates() if certificates is None else certificates
    bundle = FAMILY_BUNDLES.get(family, "")
    if not certificates or not bundle:
        return {}
    return dict.fromkeys(SANDBOX_VARIABLES, bundle)


def fingerprint(pem: str) -> str:
    """SHA-256 (hex) of the DER form of the first certificate in a PEM text; empty where there is
    none."""
    return next(iter(_parse(pem.encode())), "")


def _certifi() -> list[Path]:
    # Importing certifi.where() costs more than reading the file; and a distribution's certifi may
    # be the system's own bundle, which must not make its extra certificates count as public.
    spec = importlib.util.find_spec("certifi")
    if spec is None or spec.origin is None:
        return []
    bundle = Path(spec.origin).with_name("cacert.pem")
    system = {Path(name).resolve() for name in SYSTEM_BUNDLES}
    return [] if bundle.resolve() in system else [bundle]


def _pem_files(folder: Path) -> list[Path]:
    found = []
    for parent, _folders, names in os.walk(folder):
        found += [Path(parent, name) for name in names if name.endswith(_PEM_SUFFIXES)]
    return sorted(found)


def _read(files: Iterable[Path]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for file in files:
        try:
            with open(file, "rb", buffering=0) as stream:  # noqa: PTH123 - speed
                found |= _parse(stream.read())
        except OSError:
            continue
    return found


def _parse(data: bytes) -> dict[str, bytes]:
    found = {}
    for body in _PEM.findall(data):
        try:
            der = _certificate(base64.b64decode(body))
        except (binascii.Error, ValueError):
            continue
        if der[:1] != b"\x30":
            continue
        found[hashlib.sha256(der).hexdigest()] = der
    if not found and data[:2] == b"\x30\x82":  # an anchor may be plain DER
        der = _certificate(data)
        found[hashlib.sha256(der).hexdigest()] = der
    return found


def _certificate(der: bytes) -> bytes:
    # OpenSSL's TRUSTED form has more after the certificate: keep the first SEQUENCE alone.
    if der[:2] == b"\x30\x82":
        return der[: 4 + int.from_bytes(der[2:4], "big")]
    return der


def _pem(der: bytes) -> str:
    text = base64.b64encode(der).decode()
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    return "\n".join(("-----BEGIN CERTIFICATE-----", *lines, "-----END CERTIFICATE-----", ""))

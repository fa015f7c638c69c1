"""Actions on files: download_file (the host downloads), extract, chmod."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from pytest_sandbox.errors import Blame, PlanError
from pytest_sandbox.plans.composites import archive_format, file_name
from pytest_sandbox.plans.model import Command, Fetch, Operation, Unpack

if TYPE_CHECKING:
    from pytest_sandbox.plans.actions.context import Reader

FORMATS: Final = ("tar.gz", "tar.xz", "tar.bz2", "tar.zst", "tar.lz", "tar", "zip")
_ALIASES: Final = {"tgz": "tar.gz", "txz": "tar.xz", "tbz2": "tar.bz2", "gz": "tar.gz"}
_DIGITS: Final = {"sha256": 64, "sha512": 128}
_MODE: Final = re.compile(r"0?[0-7]{3}")


def download_file(reader: Reader) -> tuple[Operation, ...]:
    """The file below the work folder; what is known of its content goes along."""
    step = reader.step
    if reader.text("signature_url"):
        msg = f"{reader.label}: downloads with a signature are not supported yet"
        raise PlanError(msg, blame=Blame.UNSUPPORTED, next_step="give a checksum instead")
    if step.url and not reader.text("url"):
        reader.params["url"] = step.url
    url = reader.url(reader.required("url"), "url")
    others = tuple(reader.url(other, "fallback_urls") for other in reader.strings("fallback_urls"))
    algorithm = reader.text("checksum_algo") or "sha256"
    if algorithm not in _DIGITS:
        raise reader.fault(
            key="checksum_algo", what=f"{algorithm!r} is none of {', '.join(_DIGITS)}"
        )
    checksum = (step.checksum or reader.text("checksum")).lower()
    if checksum and not re.fullmatch(rf"[0-9a-f]{{{_DIGITS[algorithm]}}}", checksum):
        raise reader.fault(
            key="checksum", what=f"{checksum!r} is not {_DIGITS[algorithm]} hex digits"
        )
    checksum_url = reader.text("checksum_url")
    if checksum_url:
        checksum_url = reader.url(checksum_url, "checksum_url")
    elif not checksum and step.composite != "download":
        raise reader.fault(
            key="checksum", what="a download_file needs one", next_step="write its SHA-256 down"
        )
    return (
        Fetch(
            urls=(url, *others),
            checksum=checksum,
            algorithm=algorithm,
            dest=reader.work(reader.text("dest") or file_name(url), "dest"),
            size=step.size or reader.number("size"),
            checksum_url="" if checksum else checksum_url,
        ),
    )


def extract(reader: Reader) -> tuple[Operation, ...]:
    """The archive's members below the work folder."""
    archive = reader.required("archive")
    written = reader.text("format")
    kind = archive_format(archive) if written in {"", "auto"} else _ALIASES.get(written, written)
    if kind not in FORMATS:
        shown = written or archive
        raise reader.fault(key="format", what=f"{shown!r} is none of {', '.join(FORMATS)}")
    files = tuple(reader.relative(name, "files") for name in reader.strings("files"))
    return (
        Unpack(
            archive=reader.work(archive, "archive"),
            dest=reader.work(reader.text("dest") or ".", "dest"),
            format=kind,
            strip=reader.number("strip_dirs"),
            files=files,
        ),
    )


def chmod(reader: Reader) -> tuple[Operation, ...]:
    """Permissions of files below the work folder."""
    files = tuple(reader.work(name, "files") for name in reader.strings("files"))
    if not files:
        raise reader.fault(key="files", what="a list of paths is required")
    mode = reader.text("mode") or "0755"
    if not _MODE.fullmatch(mode):
        raise reader.fault(key="mode", what=f"{mode!r} is not three octal digits, like 0755")
    return (Command(argv=("chmod", mode, "--", *files), cwd=reader.context.layout.work),)

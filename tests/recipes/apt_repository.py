"""A real apt repository: one package, an index, and a signature by a key made for it."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
import time
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path

PACKAGE = "sandbox-greeter"
GREETING = "hello from a repository of our own"
CONTROL = f"""Package: {PACKAGE}
Version: 1.0
Architecture: all
Maintainer: The tests <tests@example.invalid>
Installed-Size: 1
Section: misc
Priority: optional
Description: says hello
"""


class Signer:
    """A GnuPG home with one key."""

    def __init__(self, home, name):
        self._home = home
        self._name = name
        self._gpg("--quick-generate-key", name, "ed25519", "sign", "never")

    def _gpg(self, *words, data=b""):
        done = subprocess.run(
            [
                "gpg",
                "--batch",
                "--quiet",
                "--pinentry-mode",
                "loopback",
                "--passphrase",
                "",
                *words,
            ],
            input=data,
            capture_output=True,
            env={**os.environ, "GNUPGHOME": self._home},
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        return done.stdout

    def key(self):
        """The armoured public key."""
        return self._gpg("--armor", "--export", self._name)

    def clearsign(self, text):
        """The text with its signature."""
        return self._gpg("--clearsign", "--digest-algo", "SHA512", data=text.encode())

    def close(self):
        """End the agent that gpg started for this home."""
        subprocess.run(
            ["gpgconf", "--kill", "all"],
            env={**os.environ, "GNUPGHOME": self._home},
            check=False,
        )


@contextmanager
def signer(name):
    """A Signer in a folder of its own (short: an agent's socket lies in it)."""
    home = tempfile.mkdtemp(prefix="gpg-")
    try:
        made = Signer(home, name)
        try:
            yield made
        finally:
            made.close()
    finally:
        shutil.rmtree(home, ignore_errors=True)


def build_repository(folder, signed_by):
    """Fill `folder` with a flat repository; the bytes of its public key are not written."""
    folder = Path(folder)
    deb = make_deb()
    (folder / f"{PACKAGE}_1.0_all.deb").write_bytes(deb)
    index = (
        f"{CONTROL}Filename: ./{PACKAGE}_1.0_all.deb\nSize: {len(deb)}\n"
        f"SHA256: {hashlib.sha256(deb).hexdigest()}\n\n"
    ).encode()
    (folder / "Packages").write_bytes(index)
    release = (
        f"Origin: tests\nLabel: tests\nDate: {formatdate(time.time(), usegmt=True)}\n"
        "Architectures: all amd64 arm64\nSHA256:\n"
        f" {hashlib.sha256(index).hexdigest()} {len(index)} Packages\n"
    )
    (folder / "InRelease").write_bytes(signed_by.clearsign(release))


def make_deb():
    """A binary package with one script in it."""
    script = f"#!/bin/sh\necho '{GREETING}'\n".encode()
    members = (
        ("debian-binary", b"2.0\n"),
        ("control.tar.gz", _tar([("./control", CONTROL.encode(), 0o644)])),
        ("data.tar.gz", _tar([(f"./usr/bin/{PACKAGE}", script, 0o755)])),
    )
    out = io.BytesIO(b"!<arch>\n")
    out.seek(0, io.SEEK_END)
    for name, data in members:
        out.write(f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode())
        out.write(data + b"\n" * (len(data) % 2))
    return out.getvalue()


def _tar(files):
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, data, mode in files:
            parts = name.split("/")[1:-1]
            for depth in range(1, len(parts) + 1):
                member = tarfile.TarInfo("./" + "/".join(parts[:depth]))
                member.type, member.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(member)
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), mode
            tar.addfile(member, io.BytesIO(data))
    return gzip.compress(raw.getvalue(), mtime=0)

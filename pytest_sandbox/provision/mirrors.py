"""Package mirrors from the host's own apt sources. No host name stands in this code (design, rule
8)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pytest_sandbox.errors import Blame, ImageUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

DEBIAN_SUITES: Final = ("bullseye", "bookworm", "trixie", "forky", "sid", "testing", "stable")
UBUNTU_SUITES: Final = ("focal", "jammy", "noble", "plucky", "questing", "resolute")
ROLLING: Final = ("sid", "testing", "unstable")
"""Suites without -updates and -security suites beside them."""

SOURCE_FILES: Final = ("/etc/apt/sources.list", "/etc/apt/sources.list.d")


@dataclass(frozen=True, slots=True)
class AptSource:
    """One entry of apt's sources: where, which suite, which components, the keyring's path if one
    is named."""

    uri: str
    suite: str
    components: tuple[str, ...]
    signed_by: str = ""

    @property
    def line(self) -> str:
        """One-line form, without options."""
        return f"deb {self.uri} {self.suite} {' '.join(self.components)}".rstrip()


def distribution_of(suite: str) -> str:
    """`debian` or `ubuntu`, empty for a suite of neither."""
    base = suite.split("-", 1)[0]
    if base in UBUNTU_SUITES:
        return "ubuntu"
    return "debian" if base in DEBIAN_SUITES or base == "unstable" else ""


def host_sources(root: str | Path = "/") -> list[AptSource]:
    """The binary package sources that apt on this host uses, in apt's order; empty off the debian
    family."""
    root = Path(root)
    found: list[AptSource] = []
    for name in SOURCE_FILES:
        path = root / name.lstrip("/")
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        for file in files:
            try:
                text = file.read_text(encoding="utf-8", errors="replace")
            except OSError:
                continue
            if file.suffix == ".list":
                found += _one_line(text)
            elif file.suffix == ".sources":
                found += _deb822(text)
    return [source for raw in found for source in _reachable(raw, root)]


def mirror_sources(
    suite: str, mirror: str | None = None, *, root: str | Path = "/"
) -> list[AptSource]:
    """The sources to bootstrap `suite` from: its own, and -updates and -security where the host's
    sources have those.

    `mirror` names one to use alone. Without it the host's entry for its own release tells where its
    distribution is mirrored, and the same place serves the other suites of that distribution.
    Raises ImageUnavailable (blame host) where the host has none.
    """
    if mirror:
        if not re.fullmatch(r"(?:https?|ftp|file)://[^\s\[\]#'\"\\]+", mirror):
            msg = f"{mirror!r} is no mirror's address"
            raise ImageUnavailable(
                msg, next_step="give --mirror a URL: http(s)://... or file:///..."
            )
        return [AptSource(mirror, suite, ("main",))]
    distribution = distribution_of(suite)
    everything = host_sources(root)
    main = _best(everything, distribution, r"[a-z]+", ("main",))
    if not distribution or main is None:
        msg = f"this host's apt sources name no mirror of {distribution or suite!s}"
        raise ImageUnavailable(
            msg,
            blame=Blame.HOST,
            next_step="name one: pytest-sandbox image bootstrap debian "
            f"--suite {suite} --mirror URL",
        )
    found = [AptSource(main.uri, suite, ("main",), main.signed_by)]
    if suite not in ROLLING:
        for extra in ("updates", "security"):
            beside = _best(everything, distribution, rf"[a-z]+-{extra}", ("main",))
            if beside is not None:
                found.append(AptSource(beside.uri, f"{suite}-{extra}", ("main",), beside.signed_by))
    return found


def _best(
    sources: Iterable[AptSource], distribution: str, suite: str, components: tuple[str, ...]
) -> AptSource | None:
    """The likeliest of the distribution's own entries: others (Docker, Microsoft) also name its
    code names as suites."""
    best, best_score = None, 0
    for source in sources:
        if not re.fullmatch(suite, source.suite) or distribution_of(source.suite) != distribution:
            continue
        if not set(components) <= set(source.components):
            continue
        last = source.uri.rstrip("/").rsplit("/", 1)[-1]
        score = 4 * (f"{distribution}-archive" in source.signed_by)
        score += 2 * bool(re.fullmatch(rf"{distribution}(-security|-ports)?|ubuntu-ports", last))
        score += source.uri.startswith("http")
        if score >= 2 and score > best_score:
            best, best_score = source, score
    return best


def _one_line(text: str) -> Iterator[AptSource]:
    pattern = re.compile(
        r"deb\s+(?:\[(?P<options>[^\]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)(?P<rest>.*)"
    )
    for line in text.splitlines():
        match = pattern.fullmatch(line.split("#", 1)[0].strip())
        if match is None:
            continue
        options = dict(
            word.split("=", 1) for word in (match["options"] or "").split() if "=" in word
        )
        yield AptSource(
            match["uri"], match["suite"], tuple(match["rest"].split()), options.get("signed-by", "")
        )


def _deb822(text: str) -> Iterator[AptSource]:
    for stanza in re.split(r"\n[ \t]*\n", text):
        fields = _fields(stanza)
        if "deb" not in fields.get("types", "").split():
            continue
        if fields.get("enabled", "yes").strip().lower() in {"no", "false", "0", "off", "without"}:
            continue
        signed_by = fields.get("signed-by", "").strip()
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                yield AptSource(
                    uri,
                    suite,
                    tuple(fields.get("components", "").split()),
                    signed_by if signed_by.startswith("/") else "",
                )


def _fields(stanza: str) -> Mapping[str, str]:
    fields: dict[str, str] = {}
    name = ""
    for line in stanza.splitlines():
        if line.startswith("#"):
            continue
        if line[:1].isspace() and name:
            fields[name] += "\n" + line.strip()
        elif ":" in line:
            name, _, value = line.partition(":")
            name = name.strip().lower()
            fields[name] = value.strip()
    return fields


def _reachable(source: AptSource, root: Path) -> Iterator[AptSource]:
    """Resolve `mirror+file:` lists (cloud images have them); leave out discs and plain folders of
    the host."""
    uri = source.uri
    if uri.startswith(("mirror+file:", "mirror:file:")):
        listed = root / uri.split(":", 1)[1].removeprefix("file:").lstrip("/")
        try:
            lines = listed.read_text(encoding="utf-8").splitlines()
        except OSError:
            return
        uris = [line.split()[0] for line in lines if line.split() and not line.startswith("#")]
        for each in uris[:1]:
            yield AptSource(each, source.suite, source.components, source.signed_by)
    elif uri.startswith(("http://", "https://", "ftp://")):
        yield source

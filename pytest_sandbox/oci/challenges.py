"""Challenges of a 401 answer: the WWW-Authenticate header (RFC 9110, 11.6.1)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_TOKEN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_SCHEME: Final = re.compile(rf"[\s,]*({_TOKEN})(?=\s|,|$)")
_PARAMETER: Final = re.compile(
    rf'[\s,]*({_TOKEN})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"=][^\s,"]*))(?=\s*(?:,|$))'
)
_TOKEN68: Final = re.compile(r"\s+[A-Za-z0-9._~+/-]+=*(?=\s*(?:,|$))")
_LONGEST: Final = 16 << 10


@dataclass(frozen=True, slots=True)
class Challenge:
    """How a server wants to be authenticated to: `scheme` and the names of `parameters` in lower
    case.
    """

    scheme: str
    parameters: Mapping[str, str]


def parse_challenges(headers: Iterable[str]) -> list[Challenge]:
    """The challenges in all WWW-Authenticate headers of an answer, in their order.

    Several may stand in one header, and a quoted value may hold commas. What cannot be read ends
    its header; of a parameter that comes twice the first counts.
    """
    found: list[Challenge] = []
    for header in headers:
        found.extend(_parse(header[:_LONGEST]))
    return found


def _parse(header: str) -> list[Challenge]:
    found: list[Challenge] = []
    position = 0
    while scheme := _SCHEME.match(header, position):
        position = scheme.end()
        parameters: dict[str, str] = {}
        while parameter := _PARAMETER.match(header, position):
            name, quoted, plain = parameter.groups()
            value = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            parameters.setdefault(name.lower(), value)
            position = parameter.end()
        if not parameters and (opaque := _TOKEN68.match(header, position)):
            position = opaque.end()
        found.append(Challenge(scheme[1].lower(), parameters))
    return found

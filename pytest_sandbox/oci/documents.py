"""JSON from strangers: read so that no other reader can see something else in it."""

from __future__ import annotations

import json
from typing import Any

from pytest_sandbox.errors import InvalidImage


def read_document(data: bytes, *, what: str, limit: int) -> dict[str, Any]:
    """The JSON object in `data`, of at most `limit` bytes. `what` names it in errors.

    Refused are other JSON values, other encodings than UTF-8, the same key twice (readers differ in
    which one wins), NaN, and nesting beyond what Python reads. Raises InvalidImage.
    """
    if len(data) > limit:
        problem = f"{what} has {len(data)} bytes; at most {limit} are taken"
        raise InvalidImage(problem, next_step="raise the bound if you trust where it comes from")
    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=_object, parse_constant=_constant
        )
    except RecursionError:
        problem = f"{what} is nested too deeply to be read"
        raise InvalidImage(problem) from None
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are of its kind
        problem = f"{what} is no JSON: {_short(error)}"
        raise InvalidImage(problem) from None
    if not isinstance(value, dict):
        problem = f"{what} is a JSON {type(value).__name__}, not an object"
        raise InvalidImage(problem)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        problem = f"the key {twice[:80]!r} stands in it twice"
        raise ValueError(problem)
    return found


def _constant(text: str) -> object:
    problem = f"{text} is no JSON value"
    raise ValueError(problem)


def _short(error: ValueError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8"
    return str(error)[:200]

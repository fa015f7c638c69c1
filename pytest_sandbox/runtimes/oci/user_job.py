"""Job of the supervisor: who a user is in a running sandbox."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from pytest_sandbox.errors import UnknownUser
from pytest_sandbox.oci.spec.users import resolve_user

if TYPE_CHECKING:
    from pytest_sandbox.oci.supervisor import Call


def look(call: Call) -> dict[str, Any]:
    """args: `pid`, `user`. Gives a User as JSON. Raises UnknownUser, InvalidImage."""
    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    root = os.open(f"/proc/{call.args['pid']}/root", flags)
    call.enter_ids()
    return user_in(root, call.args["user"])


def user_in(root: int, name: str) -> dict[str, Any]:
    """The same below the descriptor of a root."""
    try:
        return resolve_user(root, name).to_json()
    except UnknownUser as wrong:
        msg = f"user {name!r} is unknown in the sandbox: {wrong.what}"
        raise UnknownUser(msg, next_step=wrong.next_step) from None

"""Another try: after which failures, how often, and after how long a wait."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from pytest_sandbox.transport.addresses import Failure

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RetryRule:
    """At most `tries` tries and `patience` seconds of waiting for one request or one blob. `say`
    gets a line for each wait.
    """

    tries: int = 4
    patience: float = 60.0
    say: Callable[[str], None] = lambda _: None
    sleep: Callable[[float], None] = time.sleep

    def with_tries(self, tries: int) -> RetryRule:
        """The same rule with another number of tries, if that is smaller."""
        return replace(self, tries=min(tries, self.tries))


class Tries:
    """The tries of one request under a rule."""

    def __init__(self, rule: RetryRule) -> None:
        self._rule = rule
        self._count = 1
        self._waited = 0.0

    def wait(self, failure: Failure) -> None:
        """Wait before the next try, 1, 2, 4 seconds or what the server asks for. Raises Failure
        where there is no next one: not transient, too many tries, or too long a wait.
        """
        if not failure.transient:
            raise failure
        left = self._rule.patience - self._waited
        if failure.wait > left:
            raise _too_long(failure, left) from failure
        delay = max(2.0 ** (self._count - 1), failure.wait)
        if self._count >= self._rule.tries or delay > left:
            raise failure
        self._count += 1
        self._waited += delay
        again = f"try {self._count} of {self._rule.tries} in {delay:g} s"
        self._rule.say(f"{failure.what}; {again}")
        self._rule.sleep(delay)


def attempts(rule: RetryRule, work: Callable[[], T]) -> T:
    """The result of `work`, tried again under a rule. Raises Failure."""
    tries = Tries(rule)
    while True:
        try:
            return work()
        except Failure as failure:
            tries.wait(failure)


def _too_long(failure: Failure, left: float) -> Failure:
    asked = f"{failure.what} and asks to wait {failure.wait:.0f} s (Retry-After)"
    return Failure(
        f"{asked}; at most {left:.0f} s are waited",
        failure.blame,
        next_step=failure.next_step or "try again later",
        status=failure.status,
    )

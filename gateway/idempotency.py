"""Requests that may come twice and are to be done once, told apart by a key that their sender chose.

After the IETF draft of the Idempotency-Key header: while the first is under way the second is refused;
once it has succeeded, the second gets its answer; a failed one is forgotten, and may be tried again.
"""

import hashlib
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, NamedTuple, TypeVar

from gateway.errors import IdempotencyKeyInUse, IdempotencyKeyReused, TooManyIdempotencyKeys

REMEMBERED = 300.0
"""Seconds that a success is remembered: a client that tries again does so within a minute or two."""

MAX_KEYS = 100_000
"""Of the process; about 1 KB each. One that forgot a key early would send a text twice, so no more are
taken instead."""

MAX_KEYS_OF_IDENTITY = 20_000
"""In whatever rooms, so that one sender does not take all: 66 texts a second, all the time."""

A = TypeVar("A")


class Owner(NamedTuple):
    """Whose keys do not meet those of others."""

    room: str
    identity: str


class _Success(NamedTuple, Generic[A]):
    options: bytes
    body: bytes
    size: int
    answer: A
    until: float


class Attempt(Generic[A]):
    """One request with a key, to be shown its body, and told of its success."""

    def __init__(self, options: bytes, earlier: _Success[A] | None) -> None:
        self.options = options
        self.is_repeated = earlier is not None
        """Whether the first has succeeded: then nothing is to be done but `first_answer`."""
        self.answer: A | None = None
        self.size = 0
        self._earlier = earlier
        self._digest = hashlib.sha256()

    def see(self, data: bytes) -> None:
        """The next bytes of the body. Raises IdempotencyKeyReused where the first had fewer."""
        self._digest.update(data)
        self.size += len(data)
        if self._earlier is not None and self.size > self._earlier.size:
            raise reused()

    @property
    def body(self) -> bytes:
        """The digest of what was seen."""
        return self._digest.digest()

    def succeed(self, answer: A) -> None:
        self.answer = answer

    def first_answer(self) -> A:
        """Once the whole body was seen. Raises IdempotencyKeyReused where it is another."""
        if self._earlier is None or self._earlier.body != self.body:
            raise reused()
        return self._earlier.answer


class IdempotencyKeys(Generic[A]):
    def __init__(
        self,
        most: int = MAX_KEYS,
        most_of_identity: int = MAX_KEYS_OF_IDENTITY,
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most = most
        self._most_of_identity = most_of_identity
        self._now = now
        self._running: dict[tuple[Owner, str], bytes] = {}
        self._succeeded: OrderedDict[tuple[Owner, str], _Success[A]] = OrderedDict()
        self._count = 0
        self._of: Counter[str] = Counter()

    @contextmanager
    def attempt(self, owner: Owner, key: str, options: bytes) -> Iterator[Attempt[A]]:
        """One attempt, running while the context lasts. `options`: all of the request but its body.

        Raises IdempotencyKeyInUse, IdempotencyKeyReused, TooManyIdempotencyKeys.
        """
        self._forget_old()
        both = (owner, key)
        known = self._running.get(both)
        earlier = self._succeeded.get(both)
        if earlier is not None:
            known = earlier.options
        if known not in (None, options):
            raise reused()
        if earlier is not None:
            yield Attempt(options, earlier)
            return
        if known is not None:
            raise IdempotencyKeyInUse(
                "The first request with this 'Idempotency-Key' is not over yet; try again."
            )
        self._require_room(owner)
        self._running[both] = options
        self._count += 1
        self._of[owner.identity] += 1
        attempt: Attempt[A] = Attempt(options, None)
        try:
            yield attempt
        finally:
            del self._running[both]
            if attempt.answer is None:
                self._uncount(owner)
            else:
                until = self._now() + REMEMBERED
                self._succeeded[both] = _Success(
                    options, attempt.body, attempt.size, attempt.answer, until
                )

    def _require_room(self, owner: Owner) -> None:
        if self._of[owner.identity] >= self._most_of_identity or self._count >= self._most:
            raise TooManyIdempotencyKeys(
                f"Too many keys were used within {REMEMBERED:g} s; wait, or send without one."
            )

    def _forget_old(self) -> None:
        now = self._now()
        while self._succeeded:
            both, success = next(iter(self._succeeded.items()))
            if success.until > now:
                return
            del self._succeeded[both]
            self._uncount(both[0])

    def _uncount(self, owner: Owner) -> None:
        self._count -= 1
        self._of[owner.identity] -= 1
        if not self._of[owner.identity]:
            del self._of[owner.identity]


def reused() -> IdempotencyKeyReused:
    return IdempotencyKeyReused(
        "This 'Idempotency-Key' was used with another body or other options; each text needs its own."
    )

"""The texts that callers are sending: how many there are, and which stream ids are taken."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from gateway.errors import StreamIdInUse, TooManyOpenStreams


class OpenStreams:
    def __init__(self, most: int, most_of_identity: int) -> None:
        """At most so many of this process, and of one identity, in whatever rooms."""
        self._most = most
        self._most_of_identity = most_of_identity
        self._open = 0
        self._of: Counter[str] = Counter()
        self._ids: set[tuple[str, str]] = set()

    @contextmanager
    def one_more(self, identity: str) -> Iterator[None]:
        """Counted while the context lasts. Raises TooManyOpenStreams."""
        if self._of[identity] >= self._most_of_identity:
            raise TooManyOpenStreams(
                f"{identity!r} has {self._most_of_identity} texts open, as many as"
                " GATEWAY_MAX_OPEN_STREAMS_OF_IDENTITY allows."
            )
        if self._open >= self._most:
            raise TooManyOpenStreams("The gateway has as many texts open as it takes.")
        self._open += 1
        self._of[identity] += 1
        try:
            yield
        finally:
            self._open -= 1
            self._of[identity] -= 1
            if not self._of[identity]:
                del self._of[identity]

    @contextmanager
    def with_id(self, room: str, stream_id: str | None) -> Iterator[None]:
        """The id is taken while the context lasts: receivers drop a stream whose id is open already.

        Raises StreamIdInUse.
        """
        if stream_id is None:
            yield  # LiveKit draws one
            return
        key = (room, stream_id)
        if key in self._ids:
            raise StreamIdInUse("A text with this 'stream_id' is open in the room; close it first.")
        self._ids.add(key)
        try:
            yield
        finally:
            self._ids.discard(key)

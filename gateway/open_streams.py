"""The texts that callers are sending: how many there are, and which stream ids are taken."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from gateway.errors import StreamIdInUse, TooManyOpenStreams
from gateway.quota import Quota


class OpenStreams:
    def __init__(self, most: int, most_of_identity: int) -> None:
        """At most so many of this process, and of one identity, in whatever rooms."""
        self._quota = Quota(
            most,
            most_of_identity,
            TooManyOpenStreams,
            "texts",
            "GATEWAY_MAX_OPEN_STREAMS_OF_IDENTITY",
        )
        self._ids: set[tuple[str, str]] = set()

    @property
    def count(self) -> int:
        """How many there are."""
        return self._quota.taken

    @contextmanager
    def one_more(self, identity: str) -> Iterator[None]:
        """Counted while the context lasts. Raises TooManyOpenStreams."""
        self._quota.take(identity)
        try:
            yield
        finally:
            self._quota.give_back(identity)

    def with_id(self, room: str, stream_id: str | None) -> AbstractContextManager[None]:
        """The id is taken while the context lasts: receivers drop a stream whose id is open already.

        Raises StreamIdInUse.
        """
        # Without one, LiveKit draws one.
        return nullcontext() if stream_id is None else self._taken((room, stream_id))

    @contextmanager
    def _taken(self, key: tuple[str, str]) -> Iterator[None]:
        if key in self._ids:
            raise StreamIdInUse("A text with this 'stream_id' is open in the room; close it first.")
        self._ids.add(key)
        try:
            yield
        finally:
            self._ids.discard(key)

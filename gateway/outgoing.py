"""What callers send: a text on its way into a room, and what is said of it once LiveKit has taken it."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

from gateway.errors import LiveKitUnavailable, NotPermitted
from gateway.events import StreamEvent
from gateway.rooms.base import (
    Room,
    StreamHeader,
    TextOptions,
    TextStreamWriter,
)
from gateway.tally import StreamTally

TURN_TIMEOUT = 10.0
"""Seconds that an opening or a closing waits for those before it; each takes a millisecond, and LiveKit is
given as long for one."""

Append = Callable[[StreamEvent], None]
"""To the logs of everybody who is to see what is sent."""


class Sent(NamedTuple):
    """A text that LiveKit has accepted, which is not yet one that was delivered."""

    stream_id: str
    topic: str
    timestamp: int
    size: int
    attributes: dict[str, str]
    destination_identities: list[str]
    listeners: int
    """How many of the destinations, or of the room if there are none, were there."""
    position: str
    """The log's position before it: following from here shows this text and every answer to it, which
    is why the topic is received from then on."""


class InFlight:
    """Counts the texts, and the openings of streams, that are being handed to LiveKit: each is a context."""

    def __init__(self) -> None:
        self._count = 0
        self._none = asyncio.Event()
        self._none.set()

    def __enter__(self) -> None:
        self._count += 1
        self._none.clear()

    def __exit__(self, *_: object) -> None:
        self._count -= 1
        if not self._count:
            self._none.set()

    async def none(self, within: float) -> None:
        """Returns when there is none, or after so many seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                await self._none.wait()


class Order:
    """Streams of one sender are opened and closed one after another, so that receivers and its own log see
    them in one order: the native library works on what it is given at once in any."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Raises LiveKitUnavailable where it does not come within TURN_TIMEOUT."""
        try:
            async with asyncio.timeout(TURN_TIMEOUT):
                await self._lock.acquire()
        except TimeoutError:
            raise LiveKitUnavailable(
                "LiveKit takes nothing now; the text is not complete."
            ) from None
        try:
            yield
        finally:
            self._lock.release()


class Way(ABC):
    """What outgoing streams go over, as they see it."""

    def __init__(self) -> None:
        self.order = Order()
        self.in_flight = InFlight()
        self.outgoing: set[OutgoingStream] = set()
        """Those that have not ended."""

    @property
    @abstractmethod
    def is_interrupted(self) -> bool:
        """Whether what was sent just now may be lost."""

    @abstractmethod
    def require_carried(self) -> None:
        """Raises what sending would raise now."""

    @abstractmethod
    async def abort_unheard(
        self, sender: str, stream_id: str, options: TextOptions, reason: str
    ) -> None:
        """Ends a stream of `sender`, whom LiveKit lets send nothing any more, for those who receive it."""


class OutgoingStream:
    """A text stream that a caller is writing, seen by logs as it grows. Ended once."""

    def __init__(
        self,
        way: Way,
        writer: TextStreamWriter,
        options: TextOptions,
        tally: StreamTally,
        sent: Sent,
        append: Append,
    ) -> None:
        self.sent = sent
        """As it was when it was opened."""
        self.broken: str | None = None
        """Why it ended as incomplete."""
        self._way = way
        self._writer = writer
        self._options = options
        self._tally = tally
        self._append = append
        self._end_watchers: set[Callable[[], None]] = set()
        # An abort by the connection must not come between a write and its place in the log.
        self._lock = asyncio.Lock()
        way.outgoing.add(self)

    async def write(self, text: str) -> None:
        """Hands the text on; nothing for an empty one, which LiveKit's receivers skip as well.

        Raises Draining, NotPermitted or LiveKitUnavailable, also when what carried it is gone.
        """
        async with self._lock:
            self.require_whole()
            if not text:
                return
            await self._writer.write(text)
            if not self._ended:
                self._append(self._tally.chunk(text))
            self.require_whole()

    async def close(self, attributes: Mapping[str, str] | None = None) -> Sent:
        """The text is complete; `attributes` are added to those of its header. Raises as `write` does."""
        merged = {**self.sent.attributes, **(attributes or {})}
        # Who leaves waits for it, and what LiveKit has taken is complete, whatever was wanted meanwhile.
        with self._way.in_flight:
            async with self._lock, self._way.order.turn():
                self.require_whole()
                await self._writer.close(attributes)
                if self._ended or self._way.is_interrupted:
                    raise LiveKitUnavailable(
                        "The connection to LiveKit was lost; whether the text is complete is not known."
                    )
                self.broken = None
                self._finish(None, merged)
        return self.sent._replace(size=self._tally.size, attributes=merged)

    async def abort(self, reason: str) -> None:
        """Ends it as incomplete, for receivers and for the log; does nothing if it has ended already.

        Not in the order of openings and closings: nothing that is whole waits for it.
        """
        if not self._ended:
            # Before the lock: a writer that is waiting for it is not to go on.
            self.broken = self.broken or reason
        async with self._lock:
            if not self._ended:
                self._finish(reason)
                try:
                    await self._writer.abort(reason)
                except NotPermitted:
                    opened = self._tally.opened
                    await self._way.abort_unheard(
                        opened.participant_identity, opened.stream_id, self._options, reason
                    )

    def break_off(self, reason: str) -> None:
        """What carried it is gone: there is nobody to abort towards."""
        if not self._ended:
            self.broken = reason
            self._finish(reason)

    def require_whole(self) -> None:
        """Raises as `write` does."""
        self._way.require_carried()
        if self.broken is not None:
            raise LiveKitUnavailable(
                f"The connection to LiveKit was lost ({self.broken});"
                " the text is not complete in the room."
            )

    def watch_end(self, wake: Callable[[], None]) -> None:
        """Calls `wake` when it has ended, until `unwatch_end`: for who waits for a sender."""
        self._end_watchers.add(wake)
        if self._ended:
            wake()

    def unwatch_end(self, wake: Callable[[], None]) -> None:
        self._end_watchers.discard(wake)

    @property
    def _ended(self) -> bool:
        return self not in self._way.outgoing

    def _finish(self, reason: str | None, attributes: Mapping[str, str] | None = None) -> None:
        self._way.outgoing.discard(self)
        self._append(self._tally.closed(reason, attributes))
        for wake in tuple(self._end_watchers):
            wake()


def sent(
    room: Room, sender: str, header: StreamHeader, options: TextOptions, size: int, position: str
) -> Sent:
    present = room.identities
    named = options.destination_identities
    return Sent(
        stream_id=header.stream_id,
        topic=options.topic,
        timestamp=header.timestamp,
        size=size,
        attributes=dict(options.attributes),
        destination_identities=list(named),
        listeners=(
            sum(name in present for name in named) if named else len(present) - (sender in present)
        ),
        position=position,
    )

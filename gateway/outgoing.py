"""What callers send: a text on its way into a room, and what is said of it once LiveKit has taken it."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from gateway.errors import LiveKitUnavailable, NotPermitted
from gateway.events import StreamEvent, StreamOpened
from gateway.rooms.base import Room, StreamHeader, TextOptions, TextStreamWriter
from gateway.tally import StreamTally

Append = Callable[[StreamEvent], None]
"""To the logs of everybody who is to see what is sent."""


@dataclass(frozen=True, slots=True)
class Sent:
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


class OutgoingStream:
    """A text stream that a caller is writing, seen by logs as it grows. Ended once."""

    def __init__(
        self,
        writer: TextStreamWriter,
        tally: StreamTally,
        sent: Sent,
        append: Append,
        order: asyncio.Lock,
        require_carried: Callable[[], None],
        abort_unheard: Callable[[str], Awaitable[None]],
        on_ended: "Callable[[OutgoingStream], None]",
    ) -> None:
        """`order`: held while a stream of this sender is opened or closed. `require_carried` raises what
        sending over its connection would raise now; `abort_unheard` ends the stream for a reason where
        its sender is heard no more."""
        self.sent = sent
        """As it was when it was opened."""
        self.broken: str | None = None
        """Why it ended as incomplete."""
        self._writer = writer
        self._tally = tally
        self._append = append
        self._order = order
        self._require_carried = require_carried
        self._abort_unheard = abort_unheard
        self._on_ended = on_ended
        self._ended = False
        # An abort by the connection must not come between a write and its place in the log.
        self._lock = asyncio.Lock()

    async def write(self, text: str) -> None:
        """Hands the text on; nothing for an empty one, which LiveKit's receivers skip as well.

        Raises Draining, NotPermitted or LiveKitUnavailable, also when what carried it is gone.
        """
        async with self._lock:
            self._require_whole()
            if not text:
                return
            await self._writer.write(text)
            if not self._ended:
                self._append(self._tally.chunk(text))
            self._require_whole()

    async def close(self, attributes: Mapping[str, str] | None = None) -> Sent:
        """The text is complete; `attributes` are added to those of its header. Raises as `write` does."""
        async with self._lock:
            self._require_whole()
            merged = {**self.sent.attributes, **(attributes or {})}
            async with self._order:
                self._require_whole()  # it may have been aborted while it waited for its turn
                await self._writer.close(attributes)
                self._require_whole()
                self._finish(None, merged)
        return replace(self.sent, size=self._tally.size, attributes=merged)

    async def abort(self, reason: str) -> None:
        """Ends it as incomplete, for receivers and for the log; does nothing if it has ended already."""
        if not self._ended:
            # Before the lock: a writer that is waiting for it is not to go on.
            self.broken = self.broken or reason
        async with self._lock:
            if not self._ended:
                self._finish(reason)
                try:
                    await self._writer.abort(reason)
                except NotPermitted:
                    await self._abort_unheard(reason)

    def break_off(self, reason: str) -> None:
        """What carried it is gone: there is nobody to abort towards."""
        if not self._ended:
            self.broken = reason
            self._finish(reason)

    def _require_whole(self) -> None:
        self._require_carried()
        if self.broken is not None:
            raise LiveKitUnavailable(
                f"The connection to LiveKit was lost ({self.broken});"
                " the text is not complete in the room."
            )

    def _finish(self, reason: str | None, attributes: Mapping[str, str] | None = None) -> None:
        self._ended = True
        self._on_ended(self)
        self._append(self._tally.closed(reason, attributes))


def opened(
    sender: str, header: StreamHeader, options: TextOptions, size: int | None
) -> StreamOpened:
    return StreamOpened(
        stream_id=header.stream_id,
        topic=options.topic,
        participant_identity=sender,
        timestamp=header.timestamp,
        size=size,
        attributes=dict(options.attributes),
        destination_identities=options.destination_identities,
        reply_to_stream_id=options.reply_to_stream_id,
        attached_stream_ids=options.attached_stream_ids,
        generated=options.generated,
        operation=options.operation,
        version=options.version,
        local=True,
    )


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

"""GET /rooms/{room}/topics/{topic}/events: Server-Sent Events from a connection's log.

A subscriber is a cursor: what was kept and what comes live are the same read, and all that is
pending goes out in one write.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Collection, Iterator
from contextlib import AsyncExitStack, aclosing
from enum import StrEnum

from sse_starlette import EventSourceResponse
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from gateway.auth import Caller, TokenVerifier
from gateway.connection import Connection
from gateway.errors import (
    Draining,
    InvalidParameter,
    PresenceRequired,
    TooManyConnections,
    TooManyEventStreams,
    TooManyJoins,
    TooManyRooms,
    TooManyTopics,
    Unavailable,
)
from gateway.event_log import READ_BYTES, EventLog, Evicted, Position, Start, parse_position
from gateway.events import PARTICIPANTS, ClosingReason, GatewayOpened, closing
from gateway.hub import Hub
from gateway.settings import Settings
from gateway.web import sse
from gateway.web.parameters import Presence, Query, authenticate, presence_of, reading_topic

logger = logging.getLogger(__name__)

HEADERS = {
    # no-transform: a proxy that compresses would hold events back until its block is full.
    "Cache-Control": "no-store, no-transform",
}


ABSENT_RETRY = 10
"""Seconds until who read unseen, and is not in the room any more, asks again."""


class Replay(StrEnum):
    NONE = "none"
    OPEN = "open"
    ALL = "all"


class EventStreamEndpoint:
    def __init__(self, hub: Hub, verifier: TokenVerifier, settings: Settings) -> None:
        self._hub = hub
        self._verifier = verifier
        self._settings = settings
        self._open = 0

    async def get(self, request: Request) -> Response:
        query = Query(request, ("last_event_id", "replay", "presence", "participants"))
        caller = authenticate(request, query, self._verifier)
        caller.require_can_subscribe()
        topic = reading_topic(request.path_params["topic"])
        topics = (topic, PARTICIPANTS) if _flag(query, "participants") else (topic,)
        replay = _replay(query)
        presence = presence_of(query.one("presence"))
        last = _last_event_id(request, query)
        if request.method == "HEAD":
            # sse-starlette answers the headers and never begins the body.
            return EventSourceResponse(_nothing(), headers=HEADERS)
        async with AsyncExitStack() as stack:
            try:
                if (
                    last is not None
                    and presence is Presence.JOIN
                    and await self._hub.must_not_come_back(caller, last)
                ):
                    # A browser comes back to whatever ends; 204 is the one answer that makes it stop.
                    return Response(status_code=204, headers=HEADERS)
                connection, absent = await self._enter(stack, caller, presence)
                stack.enter_context(connection.following(topic))
            except (Unavailable, PresenceRequired) as error:
                if last is None:
                    raise
                # Any status but 200 would end a browser's EventSource for good.
                return _come_back_later(error)
            start = _start(connection.log, topics, replay, last)
            subscriber = Subscriber(connection, topics, caller, self._settings.heartbeat, start)
            if absent is not None:
                absent.add_done_callback(lambda _: subscriber.leave(ClosingReason.ABSENT))
            return EventStreamResponse(
                subscriber,
                stack.pop_all(),
                write_timeout=self._settings.write_timeout,
                abort=request.state.abort,
            )

    async def _enter(
        self, stack: AsyncExitStack, caller: Caller, presence: Presence
    ) -> "tuple[Connection, asyncio.Future[None] | None]":
        """What is read, and what is done when this caller may not read there any more."""
        if self._open >= self._settings.max_event_streams:
            raise TooManyEventStreams("The gateway has as many event streams as it takes.")
        self._open += 1
        stack.callback(self._leave)
        if presence is Presence.JOIN:
            return await stack.enter_async_context(self._hub.session(caller)), None
        return await stack.enter_async_context(self._hub.reading_unseen(caller))

    def _leave(self) -> None:
        self._open -= 1


class Subscriber:
    """One cursor on a log, and what its client is told around the log's events."""

    def __init__(
        self,
        connection: Connection,
        topics: Collection[str],
        caller: Caller,
        heartbeat: float,
        start: Start,
    ) -> None:
        self._connection = connection
        self._log = connection.log
        self._topics = topics
        self._caller = caller
        self._heartbeat = heartbeat
        self._start = start
        self._seq = start.seq
        self._heartbeat_due = 0.0
        self._woken = asyncio.Event()
        self._gone = False
        self._closing: ClosingReason | None = None

    def leave(self, closing: ClosingReason | None = None) -> None:
        """The blocks end: the client is gone, or is told why."""
        self._gone = self._gone or closing is None
        self._closing = self._closing or closing
        self._woken.set()

    async def blocks(self) -> AsyncGenerator[bytes]:
        """What to write, in order, until the client, the log or the token ends it."""
        self._log.watch(self._woken.set)
        try:
            for block in self._beginning():
                yield block
                del block
            self._put_heartbeat_off()
            while not self._gone:
                self._woken.clear()
                if self._closing is not None:
                    yield _closing(self._closing)
                    return
                if time.time() >= self._caller.expires_at:
                    yield _closing(ClosingReason.TOKEN_EXPIRED)
                    return
                try:
                    read = self._log.read(self._seq, self._topics)
                except Evicted:
                    # Coming back with its last id, the client is told the gap.
                    yield _closing(ClosingReason.SLOW)
                    return
                self._seq = read.seq
                if read.frames:
                    self._put_heartbeat_off()
                    yield b"".join(read.frames)
                elif self._log.ended is not None and self._seq == self._log.head.seq:
                    yield sse.encode(self._log.ended)
                    return
                elif not await self._more():
                    self._put_heartbeat_off()
                    yield sse.heartbeat(self._position())
        finally:
            self._log.unwatch(self._woken.set)

    def _beginning(self) -> Iterator[bytes]:
        """What a client needs before the first live event, its cursor armed at the very end.

        Replayed events have no ids: resuming from one of them would skip what lies between.
        """
        position = self._position()
        gap, _, replay = self._start
        del self._start  # what is replayed would be held for as long as the client stays
        connection = self._connection
        opened = GatewayOpened(connection.presence, self._caller.identity, str(self._log.head))
        pending = [sse.OPENING, sse.encode(opened)]
        if connection.condition is not None:
            pending.append(sse.encode(connection.condition))
        if gap is not None:
            pending.append(sse.encode(gap, None if replay else position))
        size = 0
        for frame in replay:
            pending.append(sse.without_id(frame))
            size += len(pending[-1])
            if size >= READ_BYTES:
                yield b"".join(pending)
                pending.clear()
                size = 0
        yield b"".join([*pending, sse.cursor(position)])

    def _put_heartbeat_off(self) -> None:
        self._heartbeat_due = asyncio.get_running_loop().time() + self._heartbeat

    def _position(self) -> str:
        return str(Position(self._log.epoch, self._seq))

    async def _more(self) -> bool:
        """Waits for the log or for the client's leaving; False when it is time for a heartbeat.

        Which is a time since the last write: what goes on in other topics does not put it off.
        """
        now = asyncio.get_running_loop().time()
        expires = now + self._caller.expires_at - time.time()
        try:
            async with asyncio.timeout_at(min(self._heartbeat_due, expires)):
                await self._woken.wait()
        except TimeoutError:
            return False
        return True


class EventStreamResponse(EventSourceResponse):
    """sse-starlette's response with a delivery loop of our own.

    The stock one runs four tasks for each client, and at shutdown cuts streams in the middle.
    """

    def __init__(
        self,
        subscriber: Subscriber,
        resources: AsyncExitStack,
        *,
        write_timeout: float,
        abort: Callable[[], None],
    ) -> None:
        """`resources` are given back when the stream is over; `abort` drops a client that does not
        take a block within `write_timeout` seconds."""
        self._blocks = subscriber.blocks()
        super().__init__(self._blocks, headers=HEADERS)
        self._subscriber = subscriber
        self._resources = resources
        self._write_timeout = write_timeout
        self._abort = abort

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._resources, aclosing(self._blocks) as blocks:
            listening = asyncio.create_task(self._listen(receive))
            try:
                start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
                await self._write(send, start)
                async for block in blocks:
                    await self._write(send, _body(block, more=True))
                    del block  # the last one would be held until the next
                await self._write(send, _body(b"", more=False))
            finally:
                listening.cancel()
                await asyncio.wait({listening})

    async def _write(self, send: Send, message: Message) -> None:
        """A client that stands still costs its socket and nothing else: its place, its connection to
        LiveKit and its token's end do not wait for it."""
        try:
            async with asyncio.timeout(self._write_timeout):
                await send(message)
        except TimeoutError:
            logger.info("A reader of events was dropped: it took nothing for too long.")
            self._abort()
            self._subscriber.leave()
        except RuntimeError:
            # uvloop's word for a socket that is closed already; uvicorn misses the end of a client
            # that has sent another request behind this one.
            self._subscriber.leave()

    async def _listen(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._subscriber.leave()


def _body(block: bytes, *, more: bool) -> Message:
    return {"type": "http.response.body", "body": block, "more_body": more}


def _closing(reason: ClosingReason) -> bytes:
    return sse.encode(closing(reason))


def _replay(query: Query) -> Replay:
    given = query.one("replay")
    try:
        return Replay.OPEN if given is None else Replay(given)
    except ValueError:
        raise InvalidParameter("'replay' must be none, open or all.") from None


def _last_event_id(request: Request, query: Query) -> Position | None:
    in_query = query.one("last_event_id")
    value = request.headers.get("last-event-id") or in_query
    return parse_position(value) if value else None


def _flag(query: Query, name: str) -> bool:
    value = query.one(name)
    if value not in (None, "0", "1"):
        raise InvalidParameter(f"{name!r} must be 0 or 1.")
    return value == "1"


def _start(log: EventLog, topics: Collection[str], replay: Replay, last: Position | None) -> Start:
    if last is not None:
        return log.resume(last, topics, whole=replay is Replay.ALL)
    match replay:
        case Replay.NONE:
            return log.replay_none()
        case Replay.OPEN:
            return log.replay_open(topics)
        case Replay.ALL:
            return log.replay_all(topics)


async def _nothing() -> AsyncGenerator[bytes]:
    return
    yield


def _come_back_later(error: Unavailable | PresenceRequired) -> Response:
    """A finished event stream: a browser comes back by itself, after the time that it is told."""
    reason = _LATER.get(type(error), ClosingReason.DISCONNECTED)
    seconds = error.retry_after if isinstance(error, Unavailable) else ABSENT_RETRY
    body = sse.retry(seconds) + _closing(reason)
    return Response(body, headers=HEADERS, media_type="text/event-stream")


_LATER: dict[type[Unavailable | PresenceRequired], ClosingReason] = {
    Draining: ClosingReason.DRAIN,
    PresenceRequired: ClosingReason.ABSENT,
    TooManyJoins: ClosingReason.OVERLOADED,
    TooManyRooms: ClosingReason.OVERLOADED,
    TooManyConnections: ClosingReason.OVERLOADED,
    TooManyEventStreams: ClosingReason.OVERLOADED,
    TooManyTopics: ClosingReason.OVERLOADED,
}

"""Event streams: Server-Sent Events, or JSON lines, from a connection's log.

Here a request becomes a follower of the log; `delivery.py` does the writing.
"""

import asyncio
import random
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from enum import StrEnum
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.auth import Caller, TokenVerifier
from gateway.connection import Connection
from gateway.delivery import Deadline, Follower, Outlet, Pump
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
from gateway.event_log import Entry, EventLog, Position, Start, parse_position
from gateway.events import AGENTS, PARTICIPANTS, ClosingReason, GatewayOpened, closing
from gateway.hub import Hold, Hub
from gateway.metrics import CONTINUED
from gateway.quota import Quota
from gateway.settings import Settings
from gateway.web import sse
from gateway.web.forms import EVENT_STREAM, FORMS, EventStreamForm, LinesForm, View, pieces
from gateway.web.frames import Part
from gateway.web.parameters import (
    Presence,
    Query,
    authenticate,
    negotiated,
    one_header,
    presence_of,
    reading_topic,
)

HEADERS = {
    # no-transform: a proxy that compresses would hold events back until its block is full.
    "Cache-Control": "no-store, no-transform",
    # nginx would hold them back, too.
    "X-Accel-Buffering": "no",
}

ABSENT_RETRY = 10
"""Seconds until who read unseen, and is not in the room any more, asks again."""

YOUNGEST = 0.8
"""An event stream lasts for a random time from this part of its maximum age on: those that came at once
do not come back at once."""

_SEAT = "event_stream"
"""The name in a request's state of what goes on when all that answered it has returned."""

_KEPT = ("type", "method", "http_version", "route")
"""What of a request is still asked for when its event stream is over."""


Choice = TypeVar("Choice", bound=StrEnum)


class Replay(StrEnum):
    NONE = "none"
    OPEN = "open"
    ALL = "all"


class EventStreamEndpoint:
    def __init__(self, hub: Hub, verifier: TokenVerifier, settings: Settings) -> None:
        self._hub = hub
        self._verifier = verifier
        self._settings = settings
        self._metrics = hub.metrics
        self._pump = Pump(
            hub.metrics, heartbeat=settings.heartbeat, write_timeout=settings.write_timeout
        )
        self._quota = Quota(
            settings.max_event_streams,
            settings.max_event_streams_of_identity,
            TooManyEventStreams,
            "event streams",
            "GATEWAY_MAX_EVENT_STREAMS_OF_IDENTITY",
        )

    async def of_topic(self, request: Request) -> Response:
        """/rooms/{room}/topics/{topic}/events"""
        query = Query(request, _NAMES)
        return await self._get(request, query, [request.path_params["topic"]])

    async def of_room(self, request: Request) -> Response:
        """/rooms/{room}/events: several topics on one connection, of which a browser has six."""
        query = Query(request, (*_NAMES, "topic"))
        return await self._get(request, query, query.all("topic"))

    async def of_agents(self, request: Request) -> Response:
        """/rooms/{room}/agent/events: of every agent in the room."""
        return await self._get(request, Query(request, _NAMES), [], {AGENTS})

    async def _get(
        self, request: Request, query: Query, asked: list[str], others: Collection[str] = ()
    ) -> Response:
        caller = authenticate(request, query, self._verifier)
        caller.require_can_subscribe()
        topics = frozenset(map(reading_topic, asked))
        shown = topics.union(others, (_OTHERS[name] for name in _OTHERS if _flag(query, name)))
        if not shown:
            flags = " or ".join(f"'{name}=1'" for name in _OTHERS)
            raise InvalidParameter(f"Nothing to follow: give 'topic', {flags}.")
        replay = _one_of(Replay, query, "replay", Replay.OPEN)
        view = _one_of(View, query, "view", View.STREAMS)
        presence = presence_of(query.one("presence"))
        last = _last_event_id(request, query)
        media_type = negotiated(request, [media_type for media_type, _ in FORMS])
        form = FORMS[media_type, view]
        if request.method == "HEAD":
            return _Head(form)
        seat = _Seat()
        is_taken = False
        try:
            try:
                seat.count(self._quota, caller.identity)
                if (
                    last is not None
                    and presence is Presence.JOIN
                    and await self._hub.must_not_come_back(caller, last)
                ):
                    # A browser comes back to whatever ends; 204 is the one answer that makes it stop.
                    return Response(status_code=204, headers=HEADERS)
                connection = await seat.take(self._hub, caller, presence, tuple(topics))
            except (Unavailable, PresenceRequired) as error:
                if last is None or media_type != EVENT_STREAM:
                    raise
                # Any status but 200 would end a browser's EventSource for good.
                self._metrics.event_streams_turned_away[_reason_of(error)] += 1
                return _come_back_later(error)
            start = _start(connection.log, shown, replay, last)
            if last is not None:
                self._metrics.resumes[start.gap.reason if start.gap else CONTINUED] += 1
            greeting = _greeting(connection, caller, form)
            beginning = pieces(_beginning(greeting, connection.log.epoch, form, start))
            deadline = self._deadline(caller)

            def follow(outlet: Outlet) -> Follower:
                return self._pump.follow(
                    connection.log, shown, form, outlet, beginning, start.seq, deadline
                )

            is_taken = True
            return _EventStream(form, follow, seat)
        finally:
            if not is_taken:
                seat.leave()

    def _deadline(self, caller: Caller) -> Deadline:
        now = asyncio.get_running_loop().time()
        expires = now + caller.expires_at - time.time()
        aged = now + self._settings.max_age * random.uniform(YOUNGEST, 1)  # noqa: S311 - no secret
        if expires <= aged:
            return Deadline(expires, ClosingReason.TOKEN_EXPIRED)
        return Deadline(aged, ClosingReason.MAX_AGE)


_OTHERS = {"participants": PARTICIPANTS, "agent": AGENTS}
"""What is followed beside texts, by the parameter that asks for it."""

_NAMES = ("last_event_id", "replay", "presence", "view", *_OTHERS)


def _greeting(
    connection: Connection, caller: Caller, form: EventStreamForm | LinesForm
) -> tuple[bytes, ...]:
    """How things are where the client begins: what comes after is in the log."""
    head = str(connection.log.head)
    opened = form.event(GatewayOpened(connection.presence, caller.identity, head))
    if connection.condition is None:
        return form.opening(), opened
    return form.opening(), opened, form.event(connection.condition)


def _beginning(
    greeting: tuple[bytes, ...], epoch: str, form: EventStreamForm | LinesForm, start: Start
) -> Iterator[Iterable[Part]]:
    """What a client needs before the first live event, its cursor armed at the very end.

    Replayed events have no ids: resuming from one of them would skip what lies between.
    """
    gap, seq, replay = start
    del start  # which holds all that is replayed
    position = str(Position(epoch, seq))
    yield greeting
    if gap is not None:
        yield (form.event(gap, None if replay else position),)
    yield from form.replayed(_taken(replay))
    yield (form.cursor(position),)


def _taken(replay: list[Entry]) -> Iterator[Entry]:
    """What has been taken is not held."""
    replay.reverse()
    while replay:
        yield replay.pop()


class EventStreams:
    """Around all that answers requests: the bodies of event streams go on here for hours, when everything
    else has returned. What that holds, and the request, would be most of what an idle one costs."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)
        if (seat := scope["state"].pop(_SEAT, None)) is None:
            return
        kept = {name: scope[name] for name in _KEPT}
        scope["headers"].clear()
        scope.clear()
        scope.update(kept)
        try:
            await seat.follower.over
        finally:
            seat.leave()
        with suppress(RuntimeError):  # uvloop's word for a socket that is closed already
            await send({"type": "http.response.body", "body": b"", "more_body": False})


class _Seat:
    """What one event stream holds while it lasts."""

    __slots__ = ("_hold", "_identity", "_is_absent", "_quota", "_topics", "follower")

    def __init__(self) -> None:
        self.follower: Follower | None = None
        self._is_absent = False
        self._quota: Quota | None = None
        self._identity = ""
        self._hold: Hold[Any] | None = None
        self._topics: tuple[str, ...] = ()

    def count(self, quota: Quota, identity: str) -> None:
        """It is one of those that there are, until it is left. Raises what the quota does."""
        quota.take(identity)
        self._quota = quota
        self._identity = identity

    async def take(
        self, hub: Hub, caller: Caller, presence: Presence, topics: tuple[str, ...]
    ) -> Connection:
        """What is read, and goes on being received on these topics."""
        if presence is Presence.JOIN:
            self._hold = await hub.hold_session(caller)
        else:
            self._hold = await hub.hold_unseen(caller, self._absent)
        connection: Connection = self._hold.connection
        connection.follow(topics)
        self._topics = topics
        return connection

    def leave(self) -> None:
        if self._quota is not None:
            self._quota.give_back(self._identity)
            self._quota = None
        if self.follower is not None:
            self.follower.lost()
        if self._hold is not None:
            self._hold.connection.unfollow(self._topics)
            self._topics = ()
            self._hold.release()

    def sit(self, follower: Follower) -> None:
        self.follower = follower
        if self._is_absent:
            self._absent()

    def _absent(self) -> None:
        """The caller may not read unseen any more."""
        self._is_absent = True
        if self.follower is not None:
            self.follower.leave(ClosingReason.ABSENT)


class _EventStream(Response):
    """The head of an event stream, whose body begins when it is out."""

    def __init__(
        self,
        form: EventStreamForm | LinesForm,
        follow: Callable[[Outlet], Follower],
        seat: _Seat,
    ) -> None:
        super().__init__(headers=HEADERS, media_type=form.media_type)
        del self.headers["content-length"]
        self._follow = follow
        self._seat = seat

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        seat = self._seat
        try:
            outlet = scope["state"]["open_outlet"]()
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            seat.sit(self._follow(outlet))
        except BaseException:
            seat.leave()
            raise
        scope["state"][_SEAT] = seat


class _Head(Response):
    """What a GET would answer, which joins nothing."""

    def __init__(self, form: EventStreamForm | LinesForm) -> None:
        super().__init__(b"", headers=HEADERS, media_type=form.media_type)
        del self.headers["content-length"]


def _one_of(kind: type[Choice], query: Query, name: str, default: Choice) -> Choice:
    given = query.one(name)
    try:
        return default if given is None else kind(given)
    except ValueError:
        raise InvalidParameter(f"{name!r} must be one of {', '.join(kind)}.") from None


def _last_event_id(request: Request, query: Query) -> Position | None:
    in_query = query.one("last_event_id")
    value = one_header(request, "last-event-id") or in_query
    return parse_position(value) if value else None


def _flag(query: Query, name: str) -> bool:
    value = query.one(name)
    if value not in (None, "0", "1"):
        raise InvalidParameter(f"{name!r} must be 0 or 1.")
    return value == "1"


def _start(log: EventLog, topics: frozenset[str], replay: Replay, last: Position | None) -> Start:
    if last is not None:
        return log.resume(last, topics, whole=replay is Replay.ALL)
    match replay:
        case Replay.NONE:
            return log.replay_none()
        case Replay.OPEN:
            return log.replay_open(topics)
        case Replay.ALL:
            return log.replay_all(topics)


def _come_back_later(error: Unavailable | PresenceRequired) -> Response:
    """A finished event stream: a browser comes back by itself, after the time that it is told."""
    seconds = error.retry_after if isinstance(error, Unavailable) else ABSENT_RETRY
    body = sse.retry(seconds) + sse.encode(closing(_reason_of(error)))
    return Response(body, headers=HEADERS, media_type=EVENT_STREAM)


def _reason_of(error: Unavailable | PresenceRequired) -> ClosingReason:
    return _LATER.get(type(error), ClosingReason.DISCONNECTED)


_LATER: dict[type[Unavailable | PresenceRequired], ClosingReason] = {
    Draining: ClosingReason.DRAIN,
    PresenceRequired: ClosingReason.ABSENT,
    TooManyJoins: ClosingReason.OVERLOADED,
    TooManyRooms: ClosingReason.OVERLOADED,
    TooManyConnections: ClosingReason.OVERLOADED,
    TooManyEventStreams: ClosingReason.OVERLOADED,
    TooManyTopics: ClosingReason.OVERLOADED,
}

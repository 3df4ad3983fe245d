"""Texts that the caller's own log keeps: a list of a topic's, and one by its id."""

import re
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gateway.auth import Caller, TokenVerifier
from gateway.connection import Connection
from gateway.errors import InvalidParameter, StreamAmbiguous, StreamNotFound
from gateway.event_log import EventLog, LoggedStream, Position, parse_position
from gateway.hub import Hub
from gateway.web.forms import message
from gateway.web.parameters import (
    NAME_BYTES,
    Query,
    authenticate,
    checked_identity,
    checked_name,
    presence_of,
    reading_topic,
)
from gateway.web.rooms import NO_STORE, visited

LIMIT = 20
MOST = 100
"""Texts on one page."""

PAGE_BYTES = 1024 * 1024
"""After which a page ends before: nothing else is done while it is made, some 10 ms for as much."""


class HistoryEndpoint:
    def __init__(self, hub: Hub, verifier: TokenVerifier) -> None:
        self._hub = hub
        self._verifier = verifier

    async def of_topic(self, request: Request) -> Response:
        """/rooms/{room}/topics/{topic}/streams: the newest first."""
        query = Query(request, ("presence", "limit", "before"))
        caller = self._reader(request, query)
        topic = reading_topic(request.path_params["topic"])
        limit = _limit(query)
        before = query.one("before")
        position = None if before is None else parse_position(before, "'before'")
        presence = presence_of(query.one("presence"))
        if request.method == "HEAD":
            return JSONResponse(None, headers=NO_STORE)  # joins nothing
        async with visited(self._hub, caller, presence) as connection:
            connection.receive_from_now(topic)
            return _page(connection.log, topic, limit, position)

    async def of_id(self, request: Request) -> Response:
        """/rooms/{room}/streams/{stream_id}"""
        query = Query(request, ("presence", "participant_identity"))
        caller = self._reader(request, query)
        stream_id = checked_name(request.path_params["stream_id"], "stream id", NAME_BYTES)
        sender = query.one("participant_identity")
        if sender is not None:
            checked_identity(sender)
        presence = presence_of(query.one("presence"))
        if request.method == "HEAD":
            return JSONResponse(None, headers=NO_STORE)
        async with visited(self._hub, caller, presence) as connection:
            return _one(connection, stream_id, sender)

    def _reader(self, request: Request, query: Query) -> Caller:
        caller = authenticate(request, query, self._verifier)
        caller.require_can_subscribe()
        return caller


def _limit(query: Query) -> int:
    value = query.one("limit")
    if value is None:
        return LIMIT
    if not re.fullmatch("[0-9]{1,3}", value) or not 1 <= int(value) <= MOST:
        raise InvalidParameter(f"'limit' must be a number from 1 to {MOST}.")
    return int(value)


def _page(log: EventLog, topic: str, limit: int, before: Position | None) -> Response:
    if before is not None and before.epoch != log.epoch:
        raise InvalidParameter(
            "'before' is of a log that is gone, for the gateway restarted or left the room; begin anew."
        )
    streams: list[dict[str, Any]] = []
    size, last, more = 0, 0, None
    for stream in log.streams(topic, None if before is None else before.seq):
        if len(streams) == limit or size >= PAGE_BYTES:
            more = str(Position(log.epoch, last))
            break
        streams.append(_members(stream))
        size += stream.size
        last = stream.opened.seq
    answer = {"streams": streams, "next": more, "position": str(log.head)}
    return JSONResponse(answer, headers=NO_STORE)


def _one(connection: Connection, stream_id: str, sender: str | None) -> Response:
    found = [
        stream
        for stream in connection.log.streams_with_id(stream_id)
        if sender in (None, stream.participant_identity)
    ]
    if not found:
        raise StreamNotFound(
            "No text of this id is remembered: it was before this participant's time here, or it has been"
            " dropped for newer ones."
        )
    if len(found) > 1:
        raise StreamAmbiguous(
            "Texts of several participants have this id; say whose by 'participant_identity'."
        )
    reading_topic(found[0].opened.topic or "")
    answer = {**_members(found[0]), "position": str(connection.log.head)}
    return JSONResponse(answer, headers=NO_STORE)


def _members(stream: LoggedStream) -> dict[str, Any]:
    """Of one that is open, what is kept of it so far: from `first_index` on."""
    is_open = stream.closed is None
    so_far = {"complete": None, "reason": None, "chunks": stream.dropped + len(stream.chunks)}
    return {
        **(so_far if is_open else {}),
        **message(stream),
        "state": "open" if is_open else "closed",
        "first_index": stream.dropped,
    }

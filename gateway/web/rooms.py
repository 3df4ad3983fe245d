"""What is in a room beside its texts: registered topics, and participants."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gateway.auth import Caller, TokenVerifier
from gateway.connection import Connection
from gateway.errors import IdentityMismatch
from gateway.hub import Hold, Hub
from gateway.rooms.base import Participant
from gateway.web.parameters import (
    Presence,
    Query,
    authenticate,
    checked_identity,
    presence_of,
    reading_topic,
)

NO_STORE = {"Cache-Control": "no-store"}


class TopicsEndpoint:
    """/rooms/{room}/topics: which are received and logged, also without subscribers."""

    def __init__(self, hub: Hub, verifier: TokenVerifier) -> None:
        self._hub = hub
        self._verifier = verifier

    async def get(self, request: Request) -> Response:
        caller = authenticate(request, Query(request, ()), self._verifier)
        caller.require_can_subscribe()
        return JSONResponse({"topics": self._hub.topics(caller)}, headers=NO_STORE)

    async def change(self, request: Request) -> Response:
        """PUT registers the topic (201 where it was not registered before, else 204), DELETE drops it."""
        caller = authenticate(request, Query(request, ()), self._verifier)
        caller.require_room_admin()
        topic = reading_topic(request.path_params["topic"])
        new = False
        if request.method == "PUT":
            new = await self._hub.register_topic(caller.room, topic)
        else:
            await self._hub.drop_topic(caller.room, topic)
        return Response(status_code=201 if new else 204, headers=NO_STORE)


class ParticipantsEndpoint:
    """/rooms/{room}/participants: who is in the room, as LiveKit has told the caller's connection."""

    def __init__(self, hub: Hub, verifier: TokenVerifier) -> None:
        self._hub = hub
        self._verifier = verifier

    async def get(self, request: Request) -> Response:
        """The list, and the position from which to follow its changes (`participants=1`)."""
        return await of_room(self._hub, self._verifier, request, _listed)

    async def delete(self, request: Request) -> Response:
        """The caller leaves the room now, for good."""
        caller = authenticate(request, Query(request, ()), self._verifier)
        identity = checked_identity(request.path_params["identity"])
        if identity != caller.identity:
            raise IdentityMismatch(
                f"The token is of {caller.identity!r}, the path says {identity!r}."
            )
        await self._hub.leave(caller)
        return Response(status_code=204, headers=NO_STORE)


@asynccontextmanager
async def visited(hub: Hub, caller: Caller, presence: Presence) -> AsyncIterator[Connection]:
    """What the caller reads, for as long as one answer takes. Raises what joining raises, and PresenceRequired."""
    hold: Hold[Any]
    if presence is Presence.JOIN:
        hold = await hub.hold_session(caller)
    else:
        hold = await hub.hold_unseen(caller, _nothing)
    with hold as connection:
        yield connection


def _nothing() -> None:
    """An answer does not take so long that it would matter."""


async def of_room(
    hub: Hub,
    verifier: TokenVerifier,
    request: Request,
    tell: Callable[[Connection], dict[str, Any]],
) -> Response:
    """Answers with what is told of the room that the caller reads, and the position from which to follow it."""
    query = Query(request, ("presence",))
    caller = authenticate(request, query, verifier)
    caller.require_can_subscribe()
    presence = presence_of(query.one("presence"))
    if request.method == "HEAD":
        return JSONResponse(None, headers=NO_STORE)  # joins nothing, as that of an event stream
    async with visited(hub, caller, presence) as connection:
        connection.require_received()
        answer = {**tell(connection), "position": str(connection.log.head)}
        return JSONResponse(answer, headers=NO_STORE)


def _listed(connection: Connection) -> dict[str, Any]:
    return {"participants": [_members(participant) for participant in connection.participants]}


def _members(participant: Participant) -> dict[str, Any]:
    members = asdict(participant)
    del members["hidden"]  # nobody is listed who is
    return members

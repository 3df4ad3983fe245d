"""/rooms/{room}/agent: the agents in a room, and how they are."""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gateway.agent_session import KnownAgent
from gateway.auth import TokenVerifier
from gateway.events import AgentEvent, members
from gateway.hub import Hub
from gateway.rooms.base import Participant
from gateway.web.parameters import Query, authenticate, presence_of
from gateway.web.rooms import NO_STORE, visited


class AgentEndpoint:
    def __init__(self, hub: Hub, verifier: TokenVerifier) -> None:
        self._hub = hub
        self._verifier = verifier

    async def get(self, request: Request) -> Response:
        """The agents, and the position from which to follow what they do (`agent=1`)."""
        query = Query(request, ("presence",))
        caller = authenticate(request, query, self._verifier)
        caller.require_can_subscribe()
        presence = presence_of(query.one("presence"))
        if request.method == "HEAD":
            return JSONResponse(None, headers=NO_STORE)  # joins nothing, as that of an event stream
        async with visited(self._hub, caller, presence) as connection:
            connection.require_received()
            agents = [_members(*each) for each in connection.agents]
            answer = {"agents": agents, "position": str(connection.log.head)}
            return JSONResponse(answer, headers=NO_STORE)


def _members(participant: Participant, agent: KnownAgent) -> dict[str, Any]:
    """What it has told, and else what its attribute says."""
    shown = participant.agent_state
    return {
        "participant_identity": participant.identity,
        "name": participant.name,
        "source": agent.source or ("attributes" if shown else None),
        "state": agent.state or shown or None,
        "user_state": agent.user_state,
        "usage": agent.usage,
        "error": _event(agent.error),
        "close": _event(agent.close),
    }


def _event(event: AgentEvent | None) -> dict[str, Any] | None:
    """Without what is said of the agent itself."""
    if event is None:
        return None
    told = members(event)
    del told["type"], told["participant_identity"]
    return told

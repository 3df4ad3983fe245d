"""/rooms/{room}/agent: the agents in a room, and how they are."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gateway.agent_session import KnownAgent
from gateway.auth import TokenVerifier
from gateway.connection import Connection
from gateway.events import AgentEvent, members
from gateway.hub import Hub
from gateway.rooms.base import Participant
from gateway.web.rooms import of_room


class AgentEndpoint:
    def __init__(self, hub: Hub, verifier: TokenVerifier) -> None:
        self._hub = hub
        self._verifier = verifier

    async def get(self, request: Request) -> Response:
        """The agents, and the position from which to follow what they do (`agent=1`)."""
        return await of_room(self._hub, self._verifier, request, _listed)


def _listed(connection: Connection) -> dict[str, Any]:
    return {"agents": [_members(*each) for each in connection.agents]}


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

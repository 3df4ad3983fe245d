"""One message to one event, by the table of all that a message may be."""

import time
from collections import deque
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any

from google.protobuf.message import DecodeError
from livekit.protocol.agent_pb import agent_session as pb

from gateway.agent_session import helper
from gateway.agent_session.conversation import conversation_item_added, user_input_transcribed
from gateway.agent_session.failures import error
from gateway.agent_session.plain import plain, seconds
from gateway.agent_session.tools import function_tools_executed, tool_execution_updated
from gateway.agent_session.usage import session_usage_updated
from gateway.events import AgentEvent, TimeOf

Decode = Callable[[Any], dict[str, Any]]

DECODERS: Mapping[str, Decode] = {
    "agent_false_interruption": plain,
    "agent_state_changed": plain,
    "amd_prediction": plain,
    "conversation_item_added": conversation_item_added,
    "eot_prediction": plain,
    "error": error,
    "function_tools_executed": function_tools_executed,
    "function_tools_started": plain,
    "overlapping_speech": plain,
    "session_usage_updated": session_usage_updated,
    "tool_execution_updated": tool_execution_updated,
    "user_input_transcribed": user_input_transcribed,
    "user_state_changed": plain,
}
"""The events of LiveKit Agents that the wire carries; debug messages are its users' own."""

HAPPENED = frozenset({"agent_false_interruption", "tool_execution_updated", "user_state_changed"})
"""Those that carry when they happened; the time of the others is that of their sending."""


MOST_REPLACED = 1_000
"""Of one kind, that wait for the framework's own form; the helper sends 300 at once at most."""


class Ignored(StrEnum):
    """Why a message is no event."""

    NOT_AN_AGENT = "not_an_agent"
    """It is of a participant of another kind, which could play an agent."""
    TOO_LONG = "too_long"
    TOO_MANY = "too_many"
    """More wait to be read than we let one agent have waiting."""
    BROKEN_OFF = "broken_off"
    """It did not come to its end."""
    MALFORMED = "malformed"
    """It is not a message."""
    OTHER = "other"
    """A request, an answer, or sound: none of ours."""
    UNKNOWN = "unknown"
    """An event that is newer than we are."""
    REPLACED = "replaced"
    """The helper has told the same, and more."""
    DEBUG = "debug"
    """What some agent's developer tells another."""


REPLACED_WITHIN = 2.0
"""Seconds in which the framework's own form follows that of the helper; they are sent in one go."""


class Decoder:
    """What agents tell one connection, one event for one happening."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._replaced: dict[tuple[str, str], deque[float]] = {}
        """When the helper of an agent told what the framework's own form is still to come of."""
        self._helped: set[str] = set()

    def decode(self, agent: str, data: bytes) -> AgentEvent | Ignored:
        """What a message of that agent tells."""
        message = pb.AgentSessionMessage()
        try:
            message.ParseFromString(data)
        except DecodeError:
            return Ignored.MALFORMED
        if message.WhichOneof("message") != "event":
            return Ignored.OTHER
        event = message.event
        name = event.WhichOneof("event")
        if name == "debug_message":
            return self._told_by_helper(agent, event.debug_message.payload)
        if name not in DECODERS:
            return Ignored.UNKNOWN
        if self._is_replaced(agent, name):
            return Ignored.REPLACED
        members = DECODERS[name](getattr(event, name))
        if not event.HasField("created_at"):
            return AgentEvent(f"agent.{name}", agent, None, None, members)
        told: TimeOf = "happened" if name in HAPPENED else "sent"
        return AgentEvent(f"agent.{name}", agent, seconds(event.created_at), told, members)

    def has_helper(self, agent: str) -> bool:
        """Whether it has told something by our helper."""
        return agent in self._helped

    def forget(self, agent: str) -> None:
        """It has left."""
        self._helped.discard(agent)
        for key in [key for key in self._replaced if key[0] == agent]:
            del self._replaced[key]

    def _told_by_helper(self, agent: str, payload: Any) -> AgentEvent | Ignored:
        if not helper.is_ours(payload):
            return Ignored.DEBUG
        try:
            told = helper.told(payload)
        except (ValueError, RecursionError):
            return Ignored.MALFORMED
        if told is None:
            return Ignored.UNKNOWN
        self._helped.add(agent)
        if told.replaces is not None and told.replaces in DECODERS:
            waiting = self._replaced.setdefault((agent, told.replaces), deque(maxlen=MOST_REPLACED))
            waiting.append(self._now())
        happened: TimeOf | None = None if told.created_at is None else "happened"
        return AgentEvent(f"agent.{told.name}", agent, told.created_at, happened, told.members)

    def _is_replaced(self, agent: str, name: str) -> bool:
        waiting = self._replaced.get((agent, name))
        while waiting:
            if self._now() - waiting.popleft() <= REPLACED_WITHIN:
                return True
        return False

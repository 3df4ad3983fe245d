"""The agents of one room: what each tells, by whatever way it does, and how it is by that.

Three sources, of which the richest speaks: our helper on the agent's side, the framework's own messages, and
the attribute of the participant where there are neither.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from gateway.agent_session.decoding import Decoder, Ignored
from gateway.events import AgentEvent

SPEAKS_WITHIN = 1.0
"""Seconds within which a session that sends messages tells of a change that its attribute has shown: they go
different ways, and what is told once is not to be told twice."""

CLOSED = "closed"
"""The state of an agent whose session has ended; the attribute goes on saying what it said last."""


class Source(StrEnum):
    """By what an agent tells of its session."""

    HELPER = "helper"
    """Our helper on its side, beside the framework."""
    NATIVE = "native"
    """The framework's own messages."""
    ATTRIBUTES = "attributes"
    """`lk.agent.state` alone."""


@dataclass(slots=True)
class KnownAgent:
    """How an agent is, by what it has told since we came."""

    source: Source | None = None
    """None while nothing has been told."""
    state: str | None = None
    """LiveKit Agents' word, or `closed`."""
    user_state: str | None = None
    usage: Mapping[str, Any] | None = None
    """Of each model, as it was told last."""
    error: AgentEvent | None = None
    """The last."""
    close: AgentEvent | None = None
    """Where its session has closed."""
    attribute: str | None = None
    """The state that it shows, whatever it tells."""
    shown: list[AgentEvent] = field(default_factory=list)
    """By the attribute, while it may still be told."""
    waiting: asyncio.TimerHandle | None = None


class Agents:
    def __init__(self, emit: Callable[[AgentEvent], None], ignored: Counter[str]) -> None:
        """`ignored` counts the messages that become no event."""
        self._emit = emit
        self._ignored = ignored
        self._decoder = Decoder()
        self._known: dict[str, KnownAgent] = {}

    def known(self, identity: str) -> KnownAgent:
        """Of an agent that is there."""
        return self._known.get(identity) or KnownAgent()

    def present(self, identity: str, state: str | None) -> None:
        """An agent was there before we came; `state` is what its attribute says."""
        self._of(identity).attribute = state

    def changed(self, identity: str, state: str | None) -> None:
        """An agent came, or its attribute changed."""
        agent = self._of(identity)
        before, agent.attribute = agent.attribute, state
        if not state or state == before or agent.source in (Source.HELPER, Source.NATIVE):
            return
        members = {"old_state": before, "new_state": state}
        agent.shown.append(AgentEvent("agent.agent_state_changed", identity, None, None, members))
        if agent.source is Source.ATTRIBUTES:
            self._tell_shown(agent)
        elif agent.waiting is None:
            loop = asyncio.get_running_loop()
            agent.waiting = loop.call_later(SPEAKS_WITHIN, self._tell_shown, agent)

    def told(self, identity: str, message: bytes) -> None:
        """An agent sent a message."""
        decoded = self._decoder.decode(identity, message)
        if isinstance(decoded, Ignored):
            self._ignored[decoded] += 1
            return
        agent = self._of(identity)
        _forget_shown(agent)
        if self._decoder.has_helper(identity):
            agent.source = Source.HELPER
        else:
            agent.source = Source.NATIVE
        self._tell(agent, decoded)

    def left(self, identity: str) -> None:
        """It is not there any more, and nothing more comes of it."""
        agent = self._known.pop(identity, None)
        self._decoder.forget(identity)
        if agent is None:
            return
        if agent.shown:
            self._tell_shown(agent)
        if agent.close is None and (agent.source or agent.attribute):
            members = {"reason": None, "error": None, "inferred": True}
            self._tell(agent, AgentEvent("agent.close", identity, None, None, members))

    def end(self) -> None:
        """We left: nothing more is told."""
        for agent in self._known.values():
            _forget_shown(agent)

    def _of(self, identity: str) -> KnownAgent:
        return self._known.setdefault(identity, KnownAgent())

    def _tell_shown(self, agent: KnownAgent) -> None:
        shown = agent.shown
        _forget_shown(agent)
        agent.source = Source.ATTRIBUTES
        for event in shown:
            self._tell(agent, event)

    def _tell(self, agent: KnownAgent, event: AgentEvent) -> None:
        match event.type:
            case "agent.agent_state_changed":
                agent.state = event.members["new_state"]
                agent.close = None  # another session of the same participant
            case "agent.user_state_changed":
                agent.user_state = event.members["new_state"]
            case "agent.session_usage_updated":
                agent.usage = event.members.get("usage")
            case "agent.error":
                agent.error = event
            case "agent.close":
                agent.state = CLOSED
                agent.close = event
            case _:
                pass  # of what happened, not of how it is
        self._emit(event)


def _forget_shown(agent: KnownAgent) -> None:
    agent.shown = []
    if agent.waiting is not None:
        agent.waiting.cancel()
        agent.waiting = None

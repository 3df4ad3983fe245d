"""What LiveKit Agents tells of a session: from the messages on `lk.agent.session` to events of ours.

Each byte stream on that topic is one protobuf `AgentSessionMessage`. Its events keep the names and the members
that LiveKit Agents gives them in Python. What a message does not carry is None, never made up; what is not
understood is counted and left out. Requests and answers on that topic are none of ours: answers go to the whole
room, system prompts included, so nothing here ever asks.
"""

from gateway.agent_session.agents import CLOSED, Agents, KnownAgent, Source
from gateway.agent_session.decoding import Ignored

__all__ = ["CLOSED", "Agents", "Ignored", "KnownAgent", "Source"]

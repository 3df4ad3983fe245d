"""Tells the readers of a LiveKit room what a session of LiveKit Agents does, in full.

    session = AgentSession(...)
    report(session)
    await session.start(...)

It speaks on the session's own wire, so it needs no server, no room and no topic of its own.
"""

from livekit_sse_gateway_agent.reporter import report

__all__ = ["report"]

"""How an agent is to be asked: from the query, or as JSON members beside the text, checked."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, NamedTuple

from gateway.errors import InvalidParameter
from gateway.web.options import AGENT_TIMEOUT, MAX_AGENT_TIMEOUT, number, seconds
from gateway.web.parameters import Query, checked_identity

TIMEOUT = 120.0
"""Seconds for the whole of an answer: a model that thinks, tools that ask others, and a voice that reads it out."""

MAX_TIMEOUT = 600.0


class WhileRunning(StrEnum):
    """What becomes of a text while the caller has a turn that is not over."""

    WAIT = "wait"
    REJECT = "reject"


class Asking(NamedTuple):
    """How an agent is asked."""

    agent: str | None
    agent_timeout: float
    timeout: float
    while_running: WhileRunning


NAMES = ("agent", "agent_timeout", "timeout", "while_running")


def asked_in(query: Query) -> dict[str, Any]:
    """By the query, as JSON has it: what is no number is left to be refused."""
    given: dict[str, Any] = {}
    for name in NAMES:
        if (value := query.one(name)) is not None:
            given[name] = number(value) if name.endswith("timeout") else value
    return given


def asking_of(given: Mapping[str, Any]) -> Asking:
    agent = given.get("agent")
    if agent is not None:
        if not isinstance(agent, str):
            raise InvalidParameter("'agent' must be a string.")
        checked_identity(agent)
    try:
        while_running = WhileRunning(given.get("while_running", WhileRunning.WAIT))
    except ValueError:
        raise InvalidParameter(
            f"'while_running' must be one of {', '.join(WhileRunning)}."
        ) from None
    return Asking(
        agent,
        seconds(given, "agent_timeout", AGENT_TIMEOUT, 0, MAX_AGENT_TIMEOUT),
        seconds(given, "timeout", TIMEOUT, 1, MAX_TIMEOUT),
        while_running,
    )

"""What our helper on the agent's side tells: debug messages with a marker (`clients/agent/README.md`)."""

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

from gateway.agent_session.tools import zipped

MARKER = "livekit-sse-gateway"
VERSION = 1

MOST_NESTED = 100
"""Values within one another. Python reads deeper ones where its own stack is short, and fails on them where it is
longer: what is taken here is to be written and read again anywhere."""

ONLY = frozenset(
    {
        "availability_changed",
        "close",
        "metrics_collected",
        "speech_created",
        "speech_finished",
        "user_transcription_timeout",
    }
)
"""What the framework itself does not send."""

FULLER = frozenset(
    {
        "conversation_item_added",
        "error",
        "function_tools_executed",
        "overlapping_speech",
        "session_usage_updated",
        "tool_execution_updated",
        "user_input_transcribed",
    }
)
"""What it sends too, with less."""


class Told(NamedTuple):
    name: str
    created_at: float | None
    members: dict[str, Any]
    replaces: str | None
    """The name of the framework's own form, which follows."""


def is_ours(payload: Any) -> bool:
    return MARKER in payload.fields


def told(payload: Any) -> Told | None:
    """None for what is newer than we are, or not in the form. Raises ValueError for what is no JSON."""
    fields = payload.fields
    name = fields["type"].string_value
    if fields[MARKER].number_value != VERSION or name not in ONLY | FULLER:
        return None
    members = json.loads(fields["members"].string_value, parse_constant=lambda _: None)
    _require_shallow(members)
    # What cannot be told again is not told at all.
    json.dumps(members, ensure_ascii=False, allow_nan=False).encode()
    if not isinstance(members, dict):
        return None
    created_at = members.pop("created_at", None)
    if isinstance(created_at, bool) or not isinstance(created_at, int | float):
        created_at = None
    if name == "function_tools_executed":
        members["zipped"] = zipped(
            members.get("function_calls"), members.get("function_call_outputs")
        )
    if name == "close":
        members["inferred"] = False
    replaces = fields["replaces"].string_value if "replaces" in fields else None
    return Told(name, created_at, members, replaces)


def _require_shallow(value: object) -> None:
    """Raises ValueError."""
    level = [value]
    for _ in range(MOST_NESTED):
        level = [each for outer in level for each in _inner(outer)]
        if not level:
            return
    raise ValueError(f"more than {MOST_NESTED} values within one another")


def _inner(value: object) -> Iterable[object]:
    match value:
        case dict():
            return value.values()
        case list():
            return value
        case _:
            return ()

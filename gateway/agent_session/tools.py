"""What tools an agent called, and what came of it."""

from typing import Any

from gateway.agent_session.plain import plain

_UPDATES = {
    "started": "tool_call_started",
    "call_updated": "tool_call_updated",
    "ended": "tool_call_ended",
    "reply_updated": "tool_reply_updated",
}
"""The wire's names, and LiveKit Agents' own in `update.type`."""


def function_tools_executed(body: Any) -> dict[str, Any]:
    """Calls and outputs as they came, and each call with its output."""
    calls = [_with_known_id(call) for call in body.function_calls]
    outputs = [_with_known_id(output) for output in body.function_call_outputs]
    return {
        "function_calls": calls,
        "function_call_outputs": outputs,
        "zipped": zipped(calls, outputs),
    }


def _with_known_id(native: Any) -> dict[str, Any]:
    """Here the framework leaves the ids of items out, which the wire shows as an empty text."""
    return {**plain(native), "id": native.id or None}


def zipped(calls: Any, outputs: Any) -> list[dict[str, Any]]:
    """Each call with its output, by the id of the call: None in the place of what is not there."""
    pairs = []
    left = [each for each in _list(outputs) if isinstance(each, dict)]
    for call in _list(calls):
        call_id = call.get("call_id") if isinstance(call, dict) else None
        output = next((each for each in left if each.get("call_id") == call_id), None)
        if output is not None:
            left.remove(output)
        pairs.append({"function_call": call, "function_call_output": output})
    return [*pairs, *({"function_call": None, "function_call_output": each} for each in left)]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def tool_execution_updated(body: Any) -> dict[str, Any]:
    kind = body.WhichOneof("update")
    if kind not in _UPDATES:
        return {"update": None}
    return {"update": {"type": _UPDATES[kind], **plain(getattr(body, kind))}}

"""What was said: items of the conversation, and what was heard of the user."""

from typing import Any

from gateway.agent_session.plain import plain

_ITEMS = {
    "message": "message",
    "function_call": "function_call",
    "function_call_output": "function_call_output",
    "agent_handoff": "agent_handoff",
    "agent_config_update": "agent_config_update",
}
"""The kinds of an item, as the wire and as LiveKit Agents call them."""


def conversation_item_added(body: Any) -> dict[str, Any]:
    return {"item": item(body.item)}


def item(native: Any) -> dict[str, Any] | None:
    """With its `type`; None where it is of a kind that is newer than we are."""
    kind = native.WhichOneof("item")
    if kind not in _ITEMS:
        return None
    made = {"type": _ITEMS[kind], **plain(getattr(native, kind))}
    if kind == "message":
        made["content"] = [_content(each) for each in native.message.content]
    return made


def _content(native: Any) -> str | None:
    """The wire carries text; of images and sound only the helper on the agent's side tells."""
    return native.text if native.WhichOneof("payload") == "text" else None


def user_input_transcribed(body: Any) -> dict[str, Any]:
    return {**plain(body), "item_id": None, "speaker_id": None}

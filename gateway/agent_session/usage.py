"""What a session has used of its models so far."""

from typing import Any

from gateway.agent_session.plain import plain


def session_usage_updated(body: Any) -> dict[str, Any]:
    """Of each model, with the `type` that LiveKit Agents gives it."""
    return {"usage": {"model_usage": [_of_model(each) for each in body.usage.model_usage]}}


def _of_model(native: Any) -> dict[str, Any]:
    kind = native.WhichOneof("usage")
    if kind is None:
        return {"type": None}
    return {"type": f"{kind}_usage", **plain(getattr(native, kind))}

"""An agent's errors: the wire has no more of one than how Python shows it."""

import re
from typing import Any

SHOWN = 1_000
"""Characters of an error's text at most: it is of the provider, and may be a page of HTML."""

_SHOWN_ERROR = re.compile(
    r"type='(?P<type>\w+)' timestamp=(?P<timestamp>[0-9.e+]+) label=(?P<label>'[^']*'|\"[^\"]*\")"
    r" error=(?P<error>.*) recoverable=(?P<recoverable>True|False)",
    re.DOTALL,
)
"""`str()` of LiveKit Agents' LLMError, STTError, TTSError and others, from 1.5 to 1.8."""

_EXCEPTION = re.compile(
    r"(?P<kind>\w+)\((?P<message>'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")", re.DOTALL
)

_BODY = re.compile(r",?\s*\(?\bbody=.*", re.DOTALL)
"""The provider's answer, which may carry what nobody should see."""


def error(body: Any) -> dict[str, Any]:
    """`type`, `label` and `recoverable` where they can be told; the message without the provider's body."""
    found = _SHOWN_ERROR.fullmatch(body.message)
    if found is None:
        return {"error": _error(message=body.message), "source": None}
    exception = _EXCEPTION.match(found["error"])
    error = _error(
        type=found["type"],
        label=found["label"][1:-1],
        timestamp=float(found["timestamp"]),
        recoverable=found["recoverable"] == "True",
        message=exception["message"][1:-1] if exception else found["error"],
        exception=exception["kind"] if exception else None,
    )
    return {"error": error, "source": None}


def _error(message: str, **known: Any) -> dict[str, Any]:
    names = ("type", "label", "timestamp", "recoverable", "exception", "status_code")
    return {
        **{name: known.get(name) for name in names},
        "message": _BODY.sub("", message)[:SHOWN],
    }

"""An event of LiveKit Agents as JSON: its fields by their own names, bounded, without media."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

from livekit.agents import APIConnectionError, APIError, llm
from livekit.agents.llm.chat_context import Instructions
from pydantic import BaseModel

MESSAGE_BYTES = 64 * 1024
"""An event whose members are larger is told in part, in the end with its scalars alone."""

LIMITS = ((16_384, 256), (2_048, 64), (256, 16))
"""Characters of a text, and items of a list or mapping; the next are taken while it is too large."""

DEPTH = 12
"""A conversation item with its metrics has five levels."""

VALUES = 10_000
"""Of one event: looking at them takes some 10 milliseconds, in which the agent does nothing else."""

CUT_MARK = "…"


def encoded(event: object) -> tuple[str, bool]:
    """The JSON object of an event's members, and whether anything of them was cut."""
    cut = False
    for characters, items in LIMITS:
        converter = _Converter(characters, items)
        text = _json(converter.members(event))
        cut = cut or converter.cut
        if len(text) <= MESSAGE_BYTES:
            return text.decode(), cut
    return _json(_scalars(event)).decode(), True


def _json(members: object) -> bytes:
    # Half of a surrogate pair has no UTF-8, and the framework would fail to send it.
    return json.dumps(members, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")


def _scalars(event: object) -> dict[str, Any]:
    members = _Converter(*LIMITS[-1]).members(event)
    scalar = str | int | float | bool | None
    return {name: value for name, value in members.items() if isinstance(value, scalar)}


class _Converter:
    """Makes plain values of what an event holds; what has no JSON form becomes null."""

    def __init__(self, text_characters: int, items: int) -> None:
        self._text_characters = text_characters
        self._items = items
        self._depth = 0
        self._left = VALUES
        self.cut = False

    def members(self, event: object) -> dict[str, Any]:
        members: dict[str, Any] = self.convert(event)
        # It is told beside the members.
        members.pop("type", None)
        return members

    def convert(self, value: Any) -> Any:
        if self._depth == DEPTH or not self._left:
            self.cut = True
            return None
        self._depth += 1
        self._left -= 1
        try:
            return self._convert(value)
        finally:
            self._depth -= 1

    def _convert(self, value: Any) -> Any:
        match value:
            case Enum():
                return self.convert(value.value)
            case None | bool() | int():
                return value
            case float():
                return value if math.isfinite(value) else None
            case str():
                return self._text(value)
            case Instructions():
                return self._text(str(value))
            case llm.ImageContent():
                return self._image(value)
            case llm.AudioContent():
                return {"type": value.type, "transcript": self.convert(value.transcript)}
            case BaseException():
                return self._exception(value)
            case BaseModel():
                return self._model(value)
            case Mapping():
                return self._mapping(value)
            case list() | tuple():
                return [self.convert(item) for item in self._first(value)]
            case _:
                return self._other(value)

    def _other(self, value: Any) -> Any:
        if is_dataclass(value):
            return {field.name: self.convert(getattr(value, field.name)) for field in fields(value)}
        if hasattr(value, "model") and hasattr(value, "provider"):
            return {"model": self.convert(value.model), "provider": self.convert(value.provider)}
        return None

    def _text(self, text: str) -> str:
        if len(text) <= self._text_characters:
            return text
        self.cut = True
        return text[: self._text_characters - len(CUT_MARK)] + CUT_MARK

    def _first(self, items: Sequence[Any]) -> Sequence[Any]:
        if len(items) <= self._items:
            return items
        self.cut = True
        return items[: self._items]

    def _mapping(self, mapping: Mapping[Any, Any]) -> dict[str, Any]:
        names = self._first(list(mapping))
        return {self._text(str(name)): self.convert(mapping[name]) for name in names}

    def _model(self, model: BaseModel) -> dict[str, Any]:
        members = {
            name: self.convert(getattr(model, name))
            for name, field in type(model).model_fields.items()
            # A deprecated field warns whoever reads it.
            if not field.exclude and not field.deprecated
        }
        # What an error of a model holds is left out of its JSON form by the framework.
        if isinstance(cause := getattr(model, "error", None), Exception):
            members |= self._exception(cause)
        return members

    def _exception(self, error: BaseException) -> dict[str, Any]:
        """Without the body of the provider's answer, which may hold what the user said."""
        text = str(error)
        if isinstance(error, APIError) and not isinstance(error, APIConnectionError):
            text = error.message
        return {
            "message": self._text(text),
            "exception": type(error).__name__,
            "status_code": self.convert(getattr(error, "status_code", None)),
        }

    def _image(self, image: llm.ImageContent) -> dict[str, Any]:
        """An image that is not at a URL is told of, and not carried."""
        url = image.image if isinstance(image.image, str) else ""
        inline = not url or url.startswith("data:")
        if not inline and len(url) > self._text_characters:
            self.cut = True
        carried = not inline and len(url) <= self._text_characters
        return {
            "id": self.convert(image.id),
            "type": image.type,
            "image": url if carried else None,
            "inference_width": image.inference_width,
            "inference_height": image.inference_height,
            "inference_detail": image.inference_detail,
            "mime_type": self.convert(image.mime_type or _media_type(url)),
        }


def _media_type(url: str) -> str | None:
    """Of a data URL."""
    if not url.startswith("data:"):
        return None
    return url[len("data:") :].partition(",")[0].partition(";")[0] or None

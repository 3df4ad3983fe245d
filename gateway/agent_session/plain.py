"""Protobuf messages as JSON has them, with nothing made up: what is not there is None."""

import math
from typing import Any

from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.message import Message

_TIMES = {"google.protobuf.Timestamp", "google.protobuf.Duration"}


def plain(message: Message) -> dict[str, Any]:
    """Its fields by their names: times and durations in seconds, enums as words."""
    return {field.name: _value(message, field) for field in message.DESCRIPTOR.fields}


def _value(message: Message, field: Any) -> Any:
    if field.is_repeated:
        values = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            return dict(values)  # all of this wire's are of strings
        return [_single(each, field) for each in values]
    if field.has_presence and not message.HasField(field.name):
        return None
    return _single(getattr(message, field.name), field)


def _single(value: Any, field: Any) -> Any:
    if field.enum_type is not None:
        return word(field.enum_type, value)
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no word for it
    if field.message_type is None:
        return value
    if field.message_type.full_name in _TIMES:
        return seconds(value)
    return plain(value)


def seconds(time: Any) -> float:
    """Of a Timestamp since the epoch, or of a Duration."""
    whole: float = round(time.seconds + time.nanos / 1e9, 6)
    return whole


def word(enum: EnumDescriptor, number: int) -> str | None:
    """LiveKit's word without what all of the enum begin with; None for one that is newer than we are."""
    value = enum.values_by_number.get(number)
    if value is None:
        return None
    prefix, _, rest = value.name.partition("_")
    prefixed = all(each.name.startswith(f"{prefix}_") for each in enum.values)
    return (rest if prefixed else value.name).lower()

"""How a text is to be sent: options from the query, or as JSON members beside it, checked."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, get_args

from gateway.auth import Caller
from gateway.errors import HeaderTooLarge, InvalidParameter
from gateway.rooms.base import Operation, TextOptions
from gateway.web.parameters import (
    ATTRIBUTE_PREFIX,
    CHAT_TOPIC,
    NAME_BYTES,
    Presence,
    Query,
    checked_identity,
    checked_name,
    presence_of,
    sending_topic,
    string_attributes,
)

HEADER_BYTES = 14_000
"""LiveKit's header packet has at most 15,000 bytes, and so has that of the end; the rest is for ids,
times and framing."""

HEADER_FIELD_BYTES = 16
"""What one attribute, destination or id costs in the packet beside its own bytes."""

AGENT_TIMEOUT = 10.0
"""Seconds to wait for an agent where the token has agents dispatched to the room; 1 to 3 are usual."""

MAX_AGENT_TIMEOUT = 60.0
"""Most seconds that a request may wait for an agent: below the patience of proxies."""

MAX_VERSION = 2**31 - 1
"""The field of LiveKit's header is a signed one of 32 bits."""


class Sending(NamedTuple):
    """How one text is sent."""

    options: TextOptions
    presence: Presence
    agent_timeout: float
    """Seconds to wait for an agent that listens; 0: not at all."""


def _text(value: str) -> Any:
    return value


def number(value: str) -> Any:
    """What is no number is left as it is, to be refused where the options are checked."""
    try:
        return float(value)
    except ValueError:
        return value


def _integer(value: str) -> Any:
    return int(value) if value.isascii() and value.isdigit() and len(value) < 20 else value


def _flag(value: str) -> Any:
    return {"1": True, "0": False}.get(value, value)


_SINGLE: Mapping[str, Callable[[str], Any]] = {
    "topic": _text,
    "reply_to_stream_id": _text,
    "stream_id": _text,
    "operation": _text,
    "version": _integer,
    "generated": _flag,
    "presence": _text,
    "agent_timeout": number,
}
"""The options that a query has once, and how it writes what JSON has a type for."""

_REPEATED = ("to", "attached_stream_ids")

QUERY_NAMES = (*_SINGLE, *_REPEATED)

NAMES = (*QUERY_NAMES, "attributes")
"""All options, by the names of their JSON members."""


_DEFAULT = Sending(TextOptions(CHAT_TOPIC), Presence.JOIN, 0.0)
"""Of most texts."""


def query_options(query: Query) -> dict[str, Any]:
    """Only those given: what is not given may still be in a JSON body."""
    options: dict[str, Any] = {}
    for name in query.names:
        if name in _SINGLE and (value := query.one(name)) is not None:
            options[name] = _SINGLE[name](value)
        elif name in _REPEATED:
            options[name] = query.all(name)
        elif name.startswith(ATTRIBUTE_PREFIX) and "attributes" not in options:
            options["attributes"] = query.prefixed(ATTRIBUTE_PREFIX)
    return options


def with_members(
    options: Mapping[str, Any], members: Mapping[str, Any], names: Sequence[str] = NAMES
) -> dict[str, Any]:
    """The options of the query and of a JSON body together, of those names. Raises InvalidParameter."""
    for name in members:
        if name not in names:
            raise InvalidParameter(
                f"Unknown JSON member {name[:64]!r}; beside 'text' there are {', '.join(names)}."
            )
        if name in options:
            raise InvalidParameter(f"{name!r} is given both in the query and in the body.")
    return {**options, **members}


def seconds(
    options: Mapping[str, Any], name: str, default: float, least: float, most: float
) -> float:
    """Raises InvalidParameter for what is no number, or none of those."""
    value = options.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        value = math.nan
    if not least <= value <= most:
        raise InvalidParameter(f"{name!r} must be a number of seconds from {least:g} to {most:g}.")
    return float(value)


def fingerprint(options: Mapping[str, Any], *others: object) -> bytes:
    """The same for the same options, in whatever order they are given."""
    return hashlib.sha256(json.dumps([options, others], sort_keys=True).encode()).digest()


def sending(options: Mapping[str, Any], caller: Caller) -> Sending:
    """All options, checked. Raises InvalidParameter, TopicReserved, HeaderTooLarge."""
    if not options and not caller.names_agents:
        return _DEFAULT
    text_options = _text_options(options)
    # A text that is not for the agent does not wait for one.
    expected = caller.names_agents and text_options.topic == CHAT_TOPIC
    default = AGENT_TIMEOUT if expected else 0.0
    timeout = seconds(options, "agent_timeout", default, 0, MAX_AGENT_TIMEOUT)
    presence = _string("presence", options["presence"]) if "presence" in options else None
    return Sending(text_options, presence_of(presence), timeout)


def _text_options(options: Mapping[str, Any]) -> TextOptions:
    _require_few(options)
    checked = {
        name: check(name, options[name]) for name, check in _CHECKS.items() if name in options
    }
    destinations = checked.pop("to", ())
    made = TextOptions(**{"topic": CHAT_TOPIC} | checked, destination_identities=destinations)
    if made.operation == "update" and made.stream_id is None:
        raise InvalidParameter("'operation' update needs the 'stream_id' of the text to replace.")
    require_fits_header(made)
    return made


def _topic(name: str, value: object) -> str:
    return sending_topic(_string(name, value))


def _destinations(name: str, value: object) -> tuple[str, ...]:
    return tuple(dict.fromkeys(checked_identity(each) for each in _strings(name, value)))


def _attributes(name: str, value: object) -> dict[str, str]:
    return string_attributes(value)


def _stream_id(name: str, value: object) -> str:
    return checked_name(_string(name, value), name, NAME_BYTES)


def _stream_ids(name: str, value: object) -> tuple[str, ...]:
    return tuple(checked_name(each, name, NAME_BYTES) for each in _strings(name, value))


def _operation(name: str, value: object) -> Operation:
    for known in get_args(Operation):
        if value == known:
            return known  # type: ignore[no-any-return]
    raise InvalidParameter("'operation' must be create or update.")


def _version(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_VERSION:
        raise InvalidParameter(f"'version' must be a whole number from 0 to {MAX_VERSION}.")
    return value


def _generated(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise InvalidParameter("'generated' must be 1 or 0 in the query, true or false in JSON.")
    return value


_CHECKS: Mapping[str, Callable[[str, object], Any]] = {
    "topic": _topic,
    "to": _destinations,
    "attributes": _attributes,
    "reply_to_stream_id": _stream_id,
    "attached_stream_ids": _stream_ids,
    "stream_id": _stream_id,
    "operation": _operation,
    "version": _version,
    "generated": _generated,
}
"""Of what goes into the stream's header, in the order in which it is looked at: only what is given is."""


def _string(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise InvalidParameter(f"{name!r} must be a string.")
    return value


def _strings(name: str, value: object) -> list[str]:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(each, str) for each in values):
        raise InvalidParameter(f"{name!r} must be a string or an array of strings.")
    return values


def _require_few(options: Mapping[str, Any]) -> None:
    """Before each is looked at: a body may have a hundred thousand."""
    count = sum(
        len(options[name])
        for name in ("to", "attached_stream_ids", "attributes")
        if isinstance(options.get(name), list | dict)
    )
    if count > HEADER_BYTES // HEADER_FIELD_BYTES:
        raise HeaderTooLarge(
            f"LiveKit's header has no room for {count} attributes, destinations and ids."
        )


def require_fits_header(options: TextOptions) -> None:
    """Raises HeaderTooLarge."""
    fields = [
        *options.destination_identities,
        *options.attached_stream_ids,
        options.topic,
        options.reply_to_stream_id or "",
        options.stream_id or "",
    ]
    for name, value in options.attributes.items():
        fields += [name, value]
    _require_fits(fields)


def require_fits_trailer(attributes: Mapping[str, str]) -> None:
    """Raises HeaderTooLarge."""
    _require_fits([part for attribute in attributes.items() for part in attribute])


def _require_fits(fields: list[str]) -> None:
    size = sum(len(field.encode()) + HEADER_FIELD_BYTES for field in fields)
    if size > HEADER_BYTES:
        raise HeaderTooLarge(
            f"Attributes, destinations and ids need {size} bytes; LiveKit's header has room for"
            f" {HEADER_BYTES}."
        )

"""POST /rooms/{room}/text: one request body is one LiveKit text stream."""

import asyncio
import codecs
import json
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from gateway.auth import Caller, TokenVerifier
from gateway.connection import Connection
from gateway.errors import (
    BodyIdle,
    BodyTooLarge,
    Draining,
    GatewayError,
    HeaderTooLarge,
    InvalidParameter,
    InvalidText,
    TokenExpired,
    UnsupportedMediaType,
)
from gateway.hub import Hub
from gateway.outgoing import OutgoingStream, Sent
from gateway.rooms.base import TextOptions
from gateway.settings import Settings
from gateway.web.parameters import (
    ATTRIBUTE_PREFIX,
    CHAT_TOPIC,
    NAME_BYTES,
    Presence,
    Query,
    authenticate,
    checked_attributes,
    checked_identity,
    checked_name,
    presence_of,
    sending_topic,
)

HEADER_BYTES = 14_000
"""LiveKit's header packet has at most 15,000 bytes; the rest is for ids, times and framing."""

HEADER_FIELD_BYTES = 16
"""What one attribute or destination costs in the packet beside its own bytes."""

CLIENT_DISCONNECTED = "client_disconnected"
"""Reason of a stream whose sender went away in the middle of its body."""

EXPIRED = "The token has expired; the stream was closed."

INTERRUPTED = "interrupted"
"""Reason of a stream that the gateway gave up, stopped hard or by a defect of its own."""

Work = Callable[[], Coroutine[None, None, None]]

SENT_MEMBERS = tuple(field.name for field in fields(Sent))

AGENT_TIMEOUT = 10.0
"""Seconds to wait for an agent where the token has agents dispatched to the room; 1 to 3 are usual."""

MAX_AGENT_TIMEOUT = 60.0
"""Most seconds that a request may wait for an agent: below the patience of proxies."""

_OPTIONS = ("topic", "to", "attributes", "reply_to_stream_id", "presence", "agent_timeout")


@dataclass(frozen=True, slots=True)
class _Sending:
    """How one request sends."""

    options: TextOptions
    presence: Presence
    agent_timeout: float
    """Seconds to wait for an agent that listens; 0: not at all."""


class TextEndpoint:
    def __init__(self, hub: Hub, verifier: TokenVerifier, settings: Settings) -> None:
        self._hub = hub
        self._verifier = verifier
        self._settings = settings

    async def post(self, request: Request) -> Response:
        try:
            sent = await self._send(request)
        except ClientDisconnect:
            # Nobody reads it; the access log shows it, with the number that nginx made customary.
            return Response(status_code=499)
        answer = json.dumps({name: getattr(sent, name) for name in SENT_MEMBERS})
        return Response(
            f"{answer}\n", headers={"Cache-Control": "no-store"}, media_type="application/json"
        )

    async def _send(self, request: Request) -> Sent:
        names = ("topic", "to", "reply_to_stream_id", "presence", "agent_timeout")
        query = Query(request, names, prefix=ATTRIBUTE_PREFIX)
        caller = authenticate(request, query, self._verifier)
        caller.require_can_publish_data()
        options = _query_options(query)
        media_type = _media_type(request)
        if media_type == "text/plain" and _is_chunked(request):
            return await self._stream(request, _sending(options, caller), caller)
        body = await self._whole(request)
        if media_type == "application/json":
            text, options = _json_text(body, options)
        else:
            text = _decoded(body)
        sending = _sending(options, caller)
        async with self._connection(sending, caller, partial(_disconnected, request)) as connection:
            _require_valid(caller)
            return await connection.send_text(caller.identity, text, sending.options)

    @asynccontextmanager
    async def _connection(
        self, sending: _Sending, caller: Caller, gone: Work | None = None
    ) -> AsyncIterator[Connection]:
        """What the text goes over, once an agent listens there if that is asked for.

        Raises ClientDisconnect where `gone` ends before that: who is not there any more tries again.
        """
        connection: Connection
        async with AsyncExitStack() as holding:
            if sending.presence is Presence.JOIN:
                connection = await holding.enter_async_context(self._hub.session(caller))
            else:
                await self._hub.require_may_send_unseen(caller)
                observer = await holding.enter_async_context(self._hub.observer(caller.room))
                await observer.look()
                connection = observer
            if sending.agent_timeout:
                seconds = min(sending.agent_timeout, caller.expires_at - time.time())
                await _unless_gone(partial(connection.until_agent_listens, seconds), gone)
                # What was so before the wait may not be any more.
                await self._require_may_send(sending, caller)
            yield connection

    async def _require_may_send(self, sending: _Sending, caller: Caller) -> None:
        _require_valid(caller)
        if sending.presence is Presence.NONE:
            await self._hub.require_may_send_unseen(caller)

    async def _stream(self, request: Request, sending: _Sending, caller: Caller) -> Sent:
        """Writes the body while it arrives.

        The stream is opened with the first piece of text, so that a body that is refused at its
        beginning leaves no trace in the room.
        """
        sender, options = caller.identity, sending.options
        async with self._connection(sending, caller) as connection:
            stream = None
            try:
                async with aclosing(self._pieces(request, connection, caller)) as pieces:
                    async for text in pieces:
                        if stream is None:
                            await self._require_may_send(sending, caller)
                            stream = await connection.open_stream(sender, options)
                        await stream.write(text)
                if stream is None:
                    await self._require_may_send(sending, caller)
                    stream = await connection.open_stream(sender, options)
                return await stream.close()
            except GatewayError as error:
                await _abort(stream, error.code)
                raise
            except ClientDisconnect:
                await _abort(stream, CLIENT_DISCONNECTED)
                raise
            except BaseException:
                # The server cancels what is left at a hard stop: even then receivers are not to
                # take the text for a whole one.
                await _abort(stream, INTERRUPTED)
                raise

    async def _pieces(
        self, request: Request, connection: Connection, caller: Caller
    ) -> AsyncGenerator[str]:
        """The body's text as it arrives; a character cut by a chunk border waits for its rest.

        Raises BodyIdle, BodyTooLarge, InvalidText, TokenExpired, ClientDisconnect; and what the
        connection says if it ends while we wait.
        """
        limit = self._settings.max_stream_bytes
        decoder = codecs.getincrementaldecoder("utf-8")()
        size = 0
        body = request.stream()
        while (piece := await self._next(body, connection, caller)) is not None:
            size += len(piece)
            if size > limit:
                raise BodyTooLarge(f"The text has more than {limit} bytes, the limit for a stream.")
            if text := _checked(decoder.decode, piece):
                yield text
        _checked(lambda rest: decoder.decode(rest, True), b"")

    async def _next(
        self, body: AsyncIterator[bytes], connection: Connection, caller: Caller
    ) -> bytes | None:
        idle = self._settings.body_idle_timeout
        left = caller.expires_at - time.time()
        if left <= 0:
            raise TokenExpired(EXPIRED)
        try:
            async with asyncio.timeout(min(idle, left)) as deadline:
                wake = partial(_expire, deadline)
                connection.watch_end(wake)
                try:
                    return await anext(body, None)
                finally:
                    connection.unwatch_end(wake)
        except TimeoutError:
            connection.require_up()
            if left <= idle:
                raise TokenExpired(EXPIRED) from None
            raise BodyIdle(f"No more text came within {idle:g} s; the stream was closed.") from None

    async def _whole(self, request: Request) -> bytes:
        limit = self._settings.max_text_bytes
        if int(request.headers.get("content-length", 0)) > limit:
            raise _too_large(limit)
        idle = self._settings.body_idle_timeout
        parts = []
        size = 0
        try:
            async with asyncio.timeout(idle) as deadline:
                wake = partial(_expire, deadline)
                self._hub.watch_drain(wake)
                try:
                    async for part in request.stream():
                        size += len(part)
                        if size > limit:
                            raise _too_large(limit)
                        parts.append(part)
                        if not self._hub.draining:
                            deadline.reschedule(asyncio.get_running_loop().time() + idle)
                finally:
                    self._hub.unwatch_drain(wake)
        except TimeoutError:
            if self._hub.draining:
                raise Draining("The gateway is going away; nothing was sent.") from None
            raise BodyIdle(f"The rest of the body did not come within {idle:g} s.") from None
        return b"".join(parts)


async def _disconnected(request: Request) -> None:
    """Returns when the client has gone; for after its body."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _unless_gone(work: Work, gone: Work | None) -> None:
    """Raises ClientDisconnect where `gone` ends first; what is left of either is given up."""
    tasks = [asyncio.create_task(each()) for each in (work, gone) if each is not None]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise ClientDisconnect
        tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def _require_valid(caller: Caller) -> None:
    if time.time() >= caller.expires_at:
        raise TokenExpired("The token has expired; nothing was sent.")


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"The body has more than {limit} bytes, the limit for a whole text;"
        " send text/plain with 'Transfer-Encoding: chunked' to stream a longer one."
    )


def _expire(deadline: asyncio.Timeout) -> None:
    if not deadline.expired():
        deadline.reschedule(asyncio.get_running_loop().time())


async def _abort(stream: OutgoingStream | None, reason: str) -> None:
    if stream is not None:
        await stream.abort(reason)


def _media_type(request: Request) -> str:
    values = request.headers.getlist("content-type")
    media_type, charset = _parsed_media_type(values[0]) if len(values) == 1 else ("", "")
    if media_type not in ("text/plain", "application/json"):
        raise UnsupportedMediaType(
            "Send 'Content-Type: text/plain' or 'application/json'"
            " (curl -d sends a form unless told: -H 'Content-Type: text/plain')."
        )
    if charset not in ("utf-8", "utf8", "us-ascii"):
        raise UnsupportedMediaType("The text must be UTF-8; no other charset is taken.")
    if request.headers.getlist("content-encoding") not in ([], ["identity"]):
        raise UnsupportedMediaType("The body must not be compressed (Content-Encoding).")
    return media_type


def _parsed_media_type(value: str) -> tuple[str, str]:
    """The media type and its charset. Written out: the standard library's parser for mail headers
    fails on hostile ones, and costs more than all else of a short POST."""
    media_type, *parameters = value.split(";")
    charset = "utf-8"
    for parameter in parameters:
        name, _, given = parameter.partition("=")
        if name.strip().lower() == "charset":
            charset = given.strip().strip('"').lower()
    return media_type.strip().lower(), charset


def _is_chunked(request: Request) -> bool:
    return "transfer-encoding" in request.headers


def _checked(decode: Callable[[bytes], str], data: bytes) -> str:
    try:
        return decode(data)
    except UnicodeDecodeError:
        raise InvalidText("The text is not valid UTF-8.") from None


def _decoded(body: bytes) -> str:
    return _checked(bytes.decode, body)


def _query_options(query: Query) -> dict[str, Any]:
    """Only those given: what is not given may still be in a JSON body."""
    options: dict[str, Any] = {}
    if (topic := query.one("topic")) is not None:
        options["topic"] = topic
    if to := query.all("to"):
        options["to"] = to
    if attributes := query.prefixed(ATTRIBUTE_PREFIX):
        options["attributes"] = attributes
    for name in ("reply_to_stream_id", "presence"):
        if (value := query.one(name)) is not None:
            options[name] = value
    if (seconds := query.one("agent_timeout")) is not None:
        options["agent_timeout"] = _seconds(seconds)
    return options


def _seconds(value: str) -> float | None:
    """None for what is not a number, which is refused where the options are checked."""
    try:
        return float(value)
    except ValueError:
        return None


def _json_text(body: bytes, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The text and all options of a JSON body and the query together."""
    try:
        members = json.loads(_decoded(body), object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise InvalidParameter(f"The body is not JSON: {error.msg} at {where}.") from None
    except RecursionError:
        raise InvalidParameter("The body is nested too deeply.") from None
    if not isinstance(members, dict):
        raise InvalidParameter('The body must be a JSON object: {"text": "…"}.')
    text = members.pop("text", None)
    if not isinstance(text, str):
        raise InvalidParameter("The JSON member 'text' is missing or not a string.")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidText("The text has a lone surrogate (\\ud800 to \\udfff).") from None
    for name in members:
        if name not in _OPTIONS:
            raise InvalidParameter(
                f"Unknown JSON member {name[:64]!r}; beside 'text' there are {', '.join(_OPTIONS)}."
            )
        if name in options:
            raise InvalidParameter(f"{name!r} is given both in the query and in the body.")
    return text, {**options, **members}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise InvalidParameter("A member of the JSON body is given twice.")
    return members


def _sending(options: Mapping[str, Any], caller: Caller) -> _Sending:
    """All options, checked. Raises as `_text_options` does."""
    text_options = _text_options(options)
    timeout = options.get("agent_timeout")
    if "agent_timeout" not in options:
        # A text that is not for the agent does not wait for one.
        expected = caller.names_agents and text_options.topic == CHAT_TOPIC
        timeout = AGENT_TIMEOUT if expected else 0.0
    elif isinstance(timeout, bool) or not isinstance(timeout, int | float):
        timeout = math.nan
    if not 0 <= timeout <= MAX_AGENT_TIMEOUT:
        raise InvalidParameter(
            f"'agent_timeout' must be a number of seconds from 0 to {MAX_AGENT_TIMEOUT:g}."
        )
    return _Sending(text_options, presence_of(_string(options, "presence")), timeout)


def _text_options(options: Mapping[str, Any]) -> TextOptions:
    """The options, checked. Raises InvalidParameter, TopicReserved, HeaderTooLarge."""
    topic = _string(options, "topic")
    to = options.get("to", [])
    if isinstance(to, str):
        to = [to]
    if not isinstance(to, list) or not all(isinstance(identity, str) for identity in to):
        raise InvalidParameter("'to' must be identities: a string or an array of strings.")
    attributes = options.get("attributes", {})
    if not isinstance(attributes, dict) or not all(
        isinstance(value, str) for value in attributes.values()
    ):
        raise InvalidParameter("'attributes' must be an object whose values are strings.")
    reply_to = _string(options, "reply_to_stream_id")
    checked = TextOptions(
        topic=CHAT_TOPIC if topic is None else sending_topic(topic),
        destination_identities=tuple(dict.fromkeys(checked_identity(name) for name in to)),
        attributes=checked_attributes(attributes),
        reply_to_stream_id=(
            None if reply_to is None else checked_name(reply_to, "reply_to_stream_id", NAME_BYTES)
        ),
    )
    _require_fits_header(checked)
    return checked


def _string(options: Mapping[str, Any], name: str) -> str | None:
    value = options.get(name)
    if name in options and not isinstance(value, str):
        raise InvalidParameter(f"{name!r} must be a string.")
    return value


def _require_fits_header(options: TextOptions) -> None:
    fields = [*options.destination_identities, options.topic, options.reply_to_stream_id or ""]
    for name, value in options.attributes.items():
        fields += [name, value]
    size = sum(len(field.encode()) + HEADER_FIELD_BYTES for field in fields)
    if size > HEADER_BYTES:
        raise HeaderTooLarge(
            f"Attributes and destinations need {size} bytes; LiveKit's header has room for {HEADER_BYTES}."
        )

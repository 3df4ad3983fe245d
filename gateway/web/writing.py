"""A body on its way into a room: written as it arrives, or handed on once it is whole."""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack, asynccontextmanager
from functools import partial
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect

from gateway.auth import Caller
from gateway.connection import Connection
from gateway.errors import GatewayError, InvalidParameter, NotPermitted, TokenExpired
from gateway.hub import Hub
from gateway.open_streams import OpenStreams
from gateway.outgoing import OutgoingStream, Sent
from gateway.rooms.base import NOT_PERMITTED
from gateway.settings import Settings
from gateway.web.body import (
    JSON,
    LINES,
    BodyDecoder,
    BodyForm,
    LinesDecoder,
    PlainDecoder,
    WholeDecoder,
    json_members,
    require_encodable,
)
from gateway.web.options import Sending, require_fits_trailer, sending, with_members
from gateway.web.parameters import Presence
from gateway.web.reading import HeldBytes, Interruption, Wake, drain_of

WHOLE_TEXTS_HELD = 64
"""How many whole texts of the longest kind are held at a time, of all requests together."""

INTERRUPTED = "interrupted"
"""Reason of a stream that the gateway gave up, stopped hard or by a defect of its own."""

CLIENT_DISCONNECTED = "client_disconnected"
"""Reason of a stream whose sender went away in the middle of its body."""

T = TypeVar("T")

Work = Callable[[], Coroutine[None, None, T]]

Gone = Work[None] | None
"""Returns when the client that waits for the answer has gone."""


class Writing(ABC):
    """One text, from the bytes of its body."""

    interruption: Interruption
    """What ends waiting for more of it."""
    limit: int
    """Most bytes of its body."""
    begun: Sent | None = None
    """What is said of a text while it is being written."""
    has_begun = False
    """Whether some of it may be in the room."""

    @property
    @abstractmethod
    def broken(self) -> str | None:
        """Why it is over, where what carried it has been lost meanwhile."""

    @abstractmethod
    def renew(self, caller: Caller) -> None:
        """The same participant goes on with this token."""

    @abstractmethod
    async def feed(self, data: bytes) -> None:
        """Returns when LiveKit has taken what is whole with these bytes, which slows a fast sender down.

        Raises what is wrong with them, and what sending raises.
        """

    @abstractmethod
    async def open(self) -> None:
        """The stream is open from here on, also without text; nothing where the text is sent whole."""

    @abstractmethod
    async def finish(self, gone: Gone = None) -> Sent:
        """The body is complete. Raises as `feed` does."""

    @abstractmethod
    async def abort(self, reason: str) -> None:
        """It is not to be complete: receivers are told, if they have seen any of it."""

    @abstractmethod
    async def aclose(self) -> None:
        """Lets go of what it holds; after `finish` or `abort`."""


class Writings:
    """Begins each text in the way that its body asks for."""

    def __init__(self, hub: Hub, settings: Settings) -> None:
        self._hub = hub
        self._settings = settings
        self._streams = OpenStreams(
            settings.max_open_streams, settings.max_open_streams_of_identity
        )
        self._held = HeldBytes(WHOLE_TEXTS_HELD * settings.max_text_bytes)

    @property
    def open_texts(self) -> int:
        """Those that are being streamed into rooms, and uploads."""
        return self._streams.count

    def limit(self, form: BodyForm, *, whole: bool) -> int:
        """Most bytes that a text of that form may have."""
        if _is_whole(form, whole):
            return self._settings.max_text_bytes
        return self._settings.max_stream_bytes

    async def begin(
        self,
        form: BodyForm,
        options: Mapping[str, Any],
        caller: Caller,
        *,
        whole: bool,
        lasts: bool = False,
        asks: bool = False,
    ) -> Writing:
        """`whole`: plain text is sent whole, as JSON is always, and JSON lines never are. `lasts`: for
        longer than one request. `asks`: its sender waits to be told whether it may send the body.

        A text that is streamed has its place in the room from here on. Raises what is wrong with the
        options, TooManyOpenStreams, StreamIdInUse, and what joining raises.
        """
        limit = self.limit(form, whole=whole)
        is_whole = _is_whole(form, whole)
        # A JSON body may add to them.
        how = None if form.media_type == JSON else sending(options, caller)
        if asks and is_whole:
            await self._require_may_begin(how or sending(options, caller), caller, how is not None)
        if how is None or is_whole:
            place = ExitStack()
            if lasts:
                place.enter_context(self._streams.one_more(caller.identity))
            body = self.whole_body(form, caller)
            return WholeWriting(self._hub, self._streams, body, options, how, caller, place)
        async with AsyncExitStack() as holding:
            holding.enter_context(self._streams.one_more(caller.identity))
            holding.enter_context(self._streams.with_id(caller.room, how.options.stream_id))
            connection = await holding.enter_async_context(connected(self._hub, how, caller))
            text = LinesDecoder() if form.media_type == LINES else PlainDecoder()
            decoder = BodyDecoder(form, text, limit)
            return StreamWriting(self._hub, how, caller, connection, decoder, holding.pop_all())

    def whole_body(self, form: BodyForm, caller: Caller) -> "WholeBody":
        return WholeBody(self._held, form, caller.identity, self._settings.max_text_bytes)

    async def _require_may_begin(self, how: Sending, caller: Caller, joins: bool) -> None:
        """Raises what would be raised once the body is there. `joins`: all options are known, presence too."""
        self._hub.require_not_draining()
        with self._streams.with_id(caller.room, how.options.stream_id):
            if joins:
                async with connected(self._hub, how, caller):
                    pass


def _is_whole(form: BodyForm, whole: bool) -> bool:
    return form.media_type == JSON or (whole and form.media_type != LINES)


class StreamWriting(Writing):
    """The stream is opened with the first piece of text, so that a body that is refused at its beginning
    leaves no trace in the room."""

    def __init__(
        self,
        hub: Hub,
        how: Sending,
        caller: Caller,
        connection: Connection,
        decoder: BodyDecoder,
        holding: AsyncExitStack,
    ) -> None:
        self.interruption = Interruption(self._watch, self._unwatch, self._require_whole)
        self.limit = decoder.limit
        self._hub = hub
        self._how = how
        self._caller = caller
        self._connection = connection
        self._decoder = decoder
        self._holding = holding
        self._stream: OutgoingStream | None = None

    @property
    def broken(self) -> str | None:
        if self._connection.ended is not None:
            return self._connection.ended
        if self._stream is not None and self._stream.broken is not None:
            return self._stream.broken
        return None if self._connection.may_send(self._caller.identity) else NotPermitted.code

    def renew(self, caller: Caller) -> None:
        self._caller = caller

    async def feed(self, data: bytes) -> None:
        self._hub.metrics.text_bytes += len(data)
        for text in self._decoder.feed(data):
            if text:
                await (await self._opened()).write(text)
            else:
                await asyncio.sleep(0)

    async def open(self) -> None:
        await self._opened()

    async def finish(self, gone: Gone = None) -> Sent:
        for text in self._decoder.finish():
            if text:
                await (await self._opened()).write(text)
        require_fits_trailer(self._decoder.trailer)
        sent = await (await self._opened()).close(self._decoder.trailer)
        self._hub.metrics.texts_sent += 1
        return sent

    async def abort(self, reason: str) -> None:
        if self._stream is not None:
            # Receivers are told why its connection ends, not how its sender is told of that.
            await self._stream.abort(self._connection.ended or reason)
            if self._stream.broken is not None:
                self._hub.metrics.texts_incomplete[self._stream.broken] += 1

    async def aclose(self) -> None:
        await self._holding.aclose()

    async def _opened(self) -> OutgoingStream:
        if self._stream is None:
            await require_may_send(self._hub, self._how, self._caller)
            self._stream = await self._connection.open_stream(
                self._caller.identity, self._how.options
            )
            self.has_begun = True
            self.begun = self._stream.sent
        return self._stream

    def _watch(self, wake: Wake) -> None:
        self._connection.watch_end(wake)
        if self._stream is not None:
            self._stream.watch_end(wake)

    def _unwatch(self, wake: Wake) -> None:
        self._connection.unwatch_end(wake)
        if self._stream is not None:
            self._stream.unwatch_end(wake)

    def _require_whole(self) -> None:
        self._connection.require_up()
        if self._stream is not None:
            self._stream.require_whole()
        if not self._connection.may_send(self._caller.identity):
            raise NotPermitted(NOT_PERMITTED)


class WholeWriting(Writing):
    """Nothing of it is in the room before all of it is, and nobody joins for one that never comes."""

    broken = None

    def __init__(
        self,
        hub: Hub,
        streams: OpenStreams,
        body: "WholeBody",
        options: Mapping[str, Any],
        how: Sending | None,
        caller: Caller,
        place: ExitStack,
    ) -> None:
        """`how`: where the body adds nothing to the options. `place`: among the open texts, for one that has it."""
        self._how = how
        self._place = place
        self.interruption = drain_of(hub)
        self.limit = body.limit
        self._hub = hub
        self._streams = streams
        self._body = body
        self._options = options
        self._caller = caller

    def renew(self, caller: Caller) -> None:
        self._caller = caller

    async def feed(self, data: bytes) -> None:
        self._hub.metrics.text_bytes += len(data)
        self._body.feed(data)

    async def open(self) -> None:
        pass

    async def finish(self, gone: Gone = None) -> Sent:
        text, how = self._text(self._body.text())
        with self._streams.with_id(self._caller.room, how.options.stream_id):
            async with connected(self._hub, how, self._caller, gone) as connection:
                require_valid(self._caller)
                self.has_begun = True
                sent = await connection.send_text(self._caller.identity, text, how.options)
                self._hub.metrics.texts_sent += 1
                return sent

    async def abort(self, reason: str) -> None:
        pass

    async def aclose(self) -> None:
        self._body.close()
        self._place.close()

    def _text(self, body: str) -> tuple[str, Sending]:
        if self._how is not None:
            return body, self._how
        members = json_members(body)
        text = members.pop("text", None)
        if not isinstance(text, str):
            raise InvalidParameter("The JSON member 'text' is missing or not a string.")
        how = sending(with_members(self._options, members), self._caller)
        return require_encodable(text), how


class WholeBody:
    """A body that is handed on once it is whole, and counted among those that are held until then."""

    def __init__(self, held: HeldBytes, form: BodyForm, identity: str, limit: int) -> None:
        self.limit = limit
        self._held = held
        self._holds = 0
        self._identity = identity
        self._decoder = BodyDecoder(form, WholeDecoder(self._hold), limit)

    def feed(self, data: bytes) -> None:
        """Raises what is wrong with it, and TooManyBodies."""
        for _ in self._decoder.feed(data):
            pass

    def text(self) -> str:
        """Of all of it. Raises likewise."""
        return "".join(self._decoder.finish())

    def close(self) -> None:
        """It is not held any more."""
        self._held.release(self._identity, self._holds)
        self._holds = 0

    def _hold(self, size: int) -> None:
        self._held.hold(self._identity, size)
        self._holds += size


def connected(
    hub: Hub, how: Sending, caller: Caller, gone: Gone = None
) -> AbstractAsyncContextManager[Connection]:
    """What the text goes over, once an agent listens there if that is asked for.

    Raises ClientDisconnect where `gone` ends before that: who is not there any more tries again.
    """
    if how.presence is Presence.JOIN and not how.agent_timeout:
        return hub.session(caller)
    return _connected(hub, how, caller, gone)


@asynccontextmanager
async def _connected(
    hub: Hub, how: Sending, caller: Caller, gone: Gone
) -> AsyncIterator[Connection]:
    connection: Connection
    async with AsyncExitStack() as holding:
        if how.presence is Presence.JOIN:
            connection = await holding.enter_async_context(hub.session(caller))
        else:
            await hub.require_may_send_unseen(caller)
            observer = await holding.enter_async_context(hub.observer(caller.room))
            await observer.look()
            connection = observer
        if how.agent_timeout:
            seconds = min(how.agent_timeout, caller.expires_at - time.time())
            await unless_gone(partial(connection.until_agent_listens, seconds), gone)
            # What was so before the wait may not be any more.
            await require_may_send(hub, how, caller)
        yield connection


async def require_may_send(hub: Hub, how: Sending, caller: Caller) -> None:
    require_valid(caller)
    if how.presence is Presence.NONE:
        await hub.require_may_send_unseen(caller)


def reason_of(error: BaseException) -> str:
    """The reason of a text that this has kept from being complete: its receivers are told in any case, also
    where the server cancels what is left at a hard stop."""
    match error:
        case GatewayError():
            return error.code
        case ClientDisconnect():
            return CLIENT_DISCONNECTED
        case _:
            return INTERRUPTED


def require_valid(caller: Caller) -> None:
    if time.time() >= caller.expires_at:
        raise TokenExpired("The token has expired; nothing was sent.")


async def unless_gone(work: Work[T], gone: Gone) -> T:
    """Raises ClientDisconnect where `gone` has ended by then; what is left of either is given up."""
    working = asyncio.create_task(work())
    tasks: list[asyncio.Task[Any]] = [working]
    if gone is not None:
        tasks.append(asyncio.create_task(gone()))
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if any(
            task.done() for task in tasks[1:]
        ):  # it may have gone before, and the work been short
            raise ClientDisconnect
        return working.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

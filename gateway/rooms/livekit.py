"""LiveKit rooms by LiveKit's SDK: the one place where its public face is met."""

import asyncio
import logging
import math
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from functools import lru_cache
from typing import Any, TypeVar

import aiohttp
from google.protobuf.message import DecodeError
from livekit import api, rtc
from livekit.rtc.room import EventTypes

from gateway.agent_session import Agents
from gateway.auth import RESERVED_IDENTITY
from gateway.errors import JoinFailed, LiveKitUnavailable, NotPermitted, NotSupported
from gateway.events import (
    ParticipantAttributesChanged,
    ParticipantConnected,
    ParticipantDisconnected,
)
from gateway.rooms import native
from gateway.rooms.agent_messages import TOPIC as AGENT_MESSAGES, AgentMessages
from gateway.rooms.base import (
    AGENT,
    AGENT_STATE,
    NOT_PERMITTED,
    Listener,
    LostReason,
    Participant,
    Room,
    Rooms,
    StreamHeader,
    TextOptions,
    TextStreamWriter,
)
from gateway.rooms.farewell import leave_again
from gateway.rooms.incoming import IncomingStreams
from gateway.rooms.native.room import NativeRoom
from gateway.rooms.tokens import mint, mint_observer

T = TypeVar("T")

logger = logging.getLogger(__name__)

JOIN_TIMEOUT = 10.0
"""Seconds for a join, retries of the SDK included; it takes 0.1 on a healthy server."""

SEND_TIMEOUT = 10.0
"""Seconds for LiveKit to take a text; while the SDK reconnects it would wait for minutes."""

LEAVE_TIMEOUT = 3.0
"""Seconds for a farewell; a server that is gone never answers it."""

LEAVING_HEARD = 0.1
"""Seconds that LiveKit has to take our leaving in, before it is asked and told again. It takes 0.01."""

FAREWELL_TTL = timedelta(minutes=1)

FLUSH_TIMEOUT = 2.0
"""Seconds that leaving waits for what the SDK has accepted from us and not yet put on the wire; 1 MiB
takes 0.2 on a local network. Leaving throws the rest away."""

FLUSH_QUIET = 0.2
"""Seconds without a packet that say that all is out: longer than a round trip to a server far away, for
in between them a busy sender waits as well."""

RESUME_TIMEOUT = 4.0
"""Seconds that the SDK has to mend a broken connection by itself. It tries at once and then every 5 s,
ten times: where the first try fails, joining anew is sooner back."""

API_TIMEOUT = 5.0
"""Seconds for an answer of LiveKit's server API; 0.005 are usual."""

ANNOUNCE_TIMEOUT = 4.0
"""Seconds for our announcement to come back. The server announces by itself after 3."""

AGENT_SETTLING = 0.03
"""Seconds between our announcement and our first text where an agent is: the two race each other to
it on different channels, and an agent ignores a text from somebody it does not know."""

ANNOUNCEMENT = "gateway.announcement"
"""An attribute that nobody has: setting it to "" changes nothing and is broadcast at once."""

_LOST = {
    rtc.DisconnectReason.DUPLICATE_IDENTITY: LostReason.DUPLICATE_IDENTITY,
    rtc.DisconnectReason.PARTICIPANT_REMOVED: LostReason.REMOVED,
    rtc.DisconnectReason.ROOM_DELETED: LostReason.ROOM_CLOSED,
    rtc.DisconnectReason.ROOM_CLOSED: LostReason.ROOM_CLOSED,
}

_CONNECTED = rtc.ConnectionState.CONN_CONNECTED

_NOT_TAKEN = (rtc.StreamError, TimeoutError, AssertionError, RuntimeError)
"""The last two are the SDK's words for a connection that has ended."""

NOT_TAKEN = "LiveKit did not take the text; whether it arrived is not known."

_API_ERRORS = (api.ServerError, aiohttp.ClientError, TimeoutError)


class LiveKitRooms(Rooms):
    def __init__(
        self,
        url: str,
        api_key: str,
        api_secret: str,
        *,
        max_stream_bytes: int,
        stream_idle_timeout: float = math.inf,
        log: bool = False,
    ) -> None:
        """Must be made on the event loop that it is used on.

        `stream_idle_timeout`: seconds after which a stream of others is closed that nothing comes on.
        """
        super().__init__()
        self._url = url
        self.stream_idle_timeout = stream_idle_timeout
        # One for both, so that a farewell goes out on the connection of the look before it.
        self._http = aiohttp.ClientSession()
        self._api = api.LiveKitAPI(url, api_key, api_secret, session=self._http)
        self._options = rtc.RoomOptions(
            auto_subscribe=False,
            data_stream=rtc.DataStreamOptions(max_payload_byte_length=max_stream_bytes),
        )
        self._credentials = (api_key, api_secret)
        self._observer = RESERVED_IDENTITY + secrets.token_hex(8)
        self._room_class = native.cured_room(log=log)
        self._work: set[asyncio.Task[None]] = set()
        self._abandoned: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._farewells: dict[tuple[str, str], asyncio.Task[None]] = {}

    async def check(self) -> None:
        """Asks the server whether it takes our API key. Raises JoinFailed or LiveKitUnavailable."""
        try:
            async with asyncio.timeout(JOIN_TIMEOUT):
                await self._api.room.list_rooms(api.ListRoomsRequest(names=["gateway.check"]))
        except api.ServerError as error:
            if error.status in (401, 403):
                raise JoinFailed(
                    f"The LiveKit server at {self._url} refuses LIVEKIT_API_KEY and LIVEKIT_API_SECRET"
                ) from error
            raise LiveKitUnavailable(
                f"The LiveKit server at {self._url} answers with an error ({error.status})"
            ) from error
        except DecodeError as error:
            raise LiveKitUnavailable(
                f"What answers at {self._url} is not a LiveKit server"
            ) from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise LiveKitUnavailable(
                f"The LiveKit server at {self._url} cannot be reached"
            ) from error

    async def join(
        self, room: str, identity: str, token: str, topics: Collection[str], listener: Listener
    ) -> Room:
        joined = await self._join(room, identity, token, topics, listener)
        joined.announce()
        return joined

    async def observe(self, room: str, topics: Collection[str], listener: Listener) -> Room:
        token = mint_observer(*self._credentials, room=room, identity=self._observer)
        return await self._join(room, self._observer, token, topics, listener)

    async def room_exists(self, room: str) -> bool:
        asked = self._api.room.list_rooms(api.ListRoomsRequest(names=[room]))
        return bool((await _answered(asked)).rooms)

    async def find_participant(self, room: str, identity: str) -> Participant | None:
        asked = self._api.room.get_participant(
            api.RoomParticipantIdentity(room=room, identity=identity)
        )
        try:
            info = await _answered(asked)
        except _NotFound:
            return None
        return Participant(
            identity=info.identity,
            sid=info.sid,
            name=info.name,
            kind=_word(api.ParticipantInfo.Kind, info.kind),
            state=_word(api.ParticipantInfo.State, info.state),
            attributes=dict(info.attributes),
            can_publish_data=info.permission.can_publish_data,
            hidden=info.permission.hidden,
        )

    async def _join(
        self, room: str, identity: str, token: str, topics: Collection[str], listener: Listener
    ) -> "_LiveKitRoom":
        await self._see_earlier(room, identity)
        joined = _LiveKitRoom(self, self._room_class(), self._api, room, identity, listener)
        for topic in topics:
            joined.register_topic(topic)
        await self._connect(joined, token)
        joined.see_agents()
        return joined

    def see_through(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Does it beside whoever asked for it."""
        task = asyncio.create_task(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        return task

    def see_off(
        self, room: str, identity: str, sid: str, reason: rtc.DisconnectReason.ValueType
    ) -> asyncio.Task[None]:
        """Makes sure that LiveKit has heard that this participant left: see `farewell`."""
        key = (room, identity)
        task = self.see_through(self._see_off(room, identity, sid, reason))
        self._farewells[key] = task

        def forget(over: asyncio.Task[None]) -> None:
            if self._farewells.get(key) is over:
                del self._farewells[key]

        task.add_done_callback(forget)
        return task

    async def _see_off(
        self, room: str, identity: str, sid: str, reason: rtc.DisconnectReason.ValueType
    ) -> None:
        async def is_there() -> bool:
            found = await self.find_participant(room, identity)
            return found is not None and found.sid == sid

        if self._http.closed:
            return  # nobody is asked any more
        try:
            async with asyncio.timeout(LEAVE_TIMEOUT):
                if not await is_there():
                    return
                await asyncio.sleep(LEAVING_HEARD)
                if not await is_there():
                    return
                token = mint(*self._credentials, room=room, identity=identity, ttl=FAREWELL_TTL)
                await leave_again(self._http, self._url, token, is_there, reason)
        except (LiveKitUnavailable, aiohttp.ClientError, DecodeError, TimeoutError) as error:
            logger.warning(
                "Whether LiveKit heard of a leaving is not known (%s); else it keeps the participant for 20 s.",
                type(error).__name__,
            )

    async def aclose(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_TIMEOUT):
                while self._work:  # a leaving is followed by its farewell
                    await asyncio.wait(self._work)
        unfinished = (*self._work, *self._abandoned.values())
        for task in unfinished:
            task.cancel()
        await asyncio.gather(*unfinished, return_exceptions=True)
        await self._api.aclose()
        await self._http.close()

    async def _connect(self, joined: "_LiveKitRoom", token: str) -> None:
        connecting = asyncio.create_task(joined.sdk_room.connect(self._url, token, self._options))
        try:
            await asyncio.wait({connecting}, timeout=JOIN_TIMEOUT)
        except asyncio.CancelledError:
            self._abandon(connecting, joined)
            raise
        if not connecting.done():
            self._abandon(connecting, joined)
            raise LiveKitUnavailable(f"LiveKit did not answer the join within {JOIN_TIMEOUT:g} s.")
        try:
            connecting.result()
        except rtc.ConnectError as error:
            raise _join_error(error) from None  # the SDK's message contains the token

    def _abandon(self, connecting: asyncio.Task[None], joined: "_LiveKitRoom") -> None:
        """Sees an unwanted join through: cancelled, it would leave a ghost of us in the room."""

        async def leave_when_joined() -> None:
            await asyncio.wait({connecting})
            if connecting.exception() is None:
                await joined.leave()

        joined.silence()
        key = (joined.name, joined.identity)
        self._abandoned[key] = task = asyncio.create_task(leave_when_joined())
        task.add_done_callback(lambda _: self._abandoned.pop(key))

    async def _see_earlier(self, room: str, identity: str) -> None:
        """Waits for an abandoned join of the same identity: whichever came second would evict the other; and for
        a farewell, which would take the signalling of the new connection."""
        if abandoned := self._abandoned.get((room, identity)):
            await asyncio.wait({abandoned}, timeout=JOIN_TIMEOUT)
            if not abandoned.done():
                raise LiveKitUnavailable("An earlier join of this identity is not over yet.")
        if farewell := self._farewells.get((room, identity)):
            await asyncio.wait({farewell})


class _NotFound(Exception):
    """LiveKit's server API knows no such participant."""


async def _answered(asked: Awaitable[T]) -> T:
    """The answer of LiveKit's server API. Raises LiveKitUnavailable or _NotFound."""
    try:
        async with asyncio.timeout(API_TIMEOUT):
            return await asked
    except api.ServerError as error:
        if error.code == api.TwirpErrorCode.NOT_FOUND:
            raise _NotFound from None
        raise LiveKitUnavailable(f"LiveKit's server API refused ({error.code}).") from error
    except (aiohttp.ClientError, DecodeError, TimeoutError) as error:
        raise LiveKitUnavailable("LiveKit's server API did not answer.") from error


def _join_error(error: rtc.ConnectError) -> JoinFailed | LiveKitUnavailable:
    match = re.search(r"client error: (\d{3})", error.message)
    if match is None:
        return LiveKitUnavailable("The LiveKit server cannot be reached; is LIVEKIT_URL right?")
    status = match[1]
    if status == "401":
        return JoinFailed("LiveKit refused the token: has it other API keys than the gateway?")
    if status == "404":
        return JoinFailed("LiveKit says that this room does not exist, and may not be created.")
    if status.startswith("5"):
        return LiveKitUnavailable(f"LiveKit cannot take a join now (HTTP status {status}).")
    return JoinFailed(f"LiveKit refused the join with HTTP status {status}.")


class _LiveKitRoom(Room):
    def __init__(
        self,
        rooms: LiveKitRooms,
        sdk_room: rtc.Room,
        server_api: api.LiveKitAPI,
        name: str,
        identity: str,
        listener: Listener,
    ) -> None:
        self._rooms = rooms
        self.sdk_room = sdk_room
        self._api = server_api
        self.name = name
        self.identity = identity
        self._listener = listener
        self._topics: set[str] = set()
        self._incoming = IncomingStreams(
            sdk_room,
            listener.emit,
            lambda sender: rooms.find_participant(name, sender),
            rooms.stream_idle_timeout,
        )
        self.agents = Agents(listener.emit, rooms.ignored_messages)
        self._messages = AgentMessages(self._is_agent, self.agents, rooms.ignored_messages)
        sdk_room.register_byte_stream_handler(AGENT_MESSAGES, self._messages.open)
        if isinstance(sdk_room, NativeRoom):
            sdk_room.on_stream_piece = self._messages.piece
        self._announces = False
        self._announced: asyncio.Task[None] | None = None
        self._losing: asyncio.Task[None] | None = None
        self._left = False
        self._leaving: asyncio.Task[None] | None = None
        self._sent_at = -math.inf
        self._resume_deadline: asyncio.TimerHandle | None = None
        self._callbacks: dict[EventTypes, Callable[..., None]] = {
            "disconnected": self._on_disconnected,
            "reconnecting": self._on_reconnecting,
            "reconnected": self._on_reconnected,
            "participant_connected": self._on_participant_connected,
            "participant_disconnected": self._on_participant_disconnected,
            "participant_attributes_changed": self._on_attributes_changed,
        }
        for event, callback in self._callbacks.items():
            sdk_room.on(event, callback)

    @property
    def is_connected(self) -> bool:
        return self.sdk_room.connection_state == _CONNECTED

    @property
    def local(self) -> Participant:
        return _participant(self.sdk_room.local_participant)

    @property
    def hidden(self) -> bool:
        return bool(self.sdk_room.local_participant.permissions.hidden)

    @property
    def identities(self) -> Collection[str]:
        return self.sdk_room.remote_participants.keys()

    def participant(self, identity: str) -> Participant | None:
        found = self.sdk_room.remote_participants.get(identity)
        return None if found is None else _participant(found)

    def register_topic(self, topic: str) -> None:
        if topic not in self._topics:
            self._topics.add(topic)
            self.sdk_room.register_text_stream_handler(topic, self._incoming.open)

    def unregister_topic(self, topic: str) -> None:
        self._topics.discard(topic)
        self.sdk_room.unregister_text_stream_handler(topic)

    async def send_text(
        self, text: str, options: TextOptions, sender: str | None = None
    ) -> StreamHeader:
        await self._ready_to_send(sender)
        try:
            return await native.send_text(
                self.sdk_room, text, options, sender_identity=sender, within=SEND_TIMEOUT
            )
        except _NOT_TAKEN as error:
            raise LiveKitUnavailable(NOT_TAKEN) from error
        finally:
            self._sent_at = time.monotonic()

    async def open_text_stream(
        self, options: TextOptions, sender: str | None = None
    ) -> TextStreamWriter:
        await self._ready_to_send(sender)
        async with self.taking():
            writer = await native.open_text_stream(self.sdk_room, options, sender_identity=sender)
        return _LiveKitWriter(self, writer, sender)

    async def abort_text_stream(
        self, stream_id: str, options: TextOptions, sender: str, reason: str
    ) -> None:
        if not isinstance(self.sdk_room, NativeRoom):
            raise NotSupported("This version of the LiveKit SDK ends no streams of others.")
        async with self.taking():
            await self.sdk_room.send_trailer(stream_id, options, sender, reason)

    @asynccontextmanager
    async def taking(self, within: float = SEND_TIMEOUT) -> AsyncIterator[None]:
        """Around every call that hands a piece of a stream to LiveKit: bounded, its errors made ours."""
        try:
            async with asyncio.timeout(within):
                yield
        except _NOT_TAKEN as error:
            raise LiveKitUnavailable(NOT_TAKEN) from error
        finally:
            self._sent_at = time.monotonic()

    def see_through(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Does it beside whoever asked for it."""
        return self._rooms.see_through(work)

    def silence(self) -> None:
        """Nothing more comes to the listener."""
        self._left = True

    async def leave(self, *, for_good: bool = False) -> None:
        # Once, and to its end, whoever asks for it how often and gives up waiting.
        if self._leaving is None:
            self._leaving = self._rooms.see_through(self._leave(for_good))
        await asyncio.shield(self._leaving)

    async def _leave(self, for_good: bool) -> None:
        self._end()
        await self._flush()
        reason = (
            rtc.DisconnectReason.CLIENT_INITIATED
            if for_good
            else rtc.DisconnectReason.USER_UNAVAILABLE
        )
        if self.sdk_room.isconnected():
            sid = self.sdk_room.local_participant.sid
            await self._disconnect(reason)
            self._rooms.see_off(self.name, self.identity, sid, reason)
        await self._incoming.end()
        await self._messages.end()
        self.agents.end()
        self._part()

    def _part(self) -> None:
        """From the SDK's room, which else is held until a collection of garbage, its native memory too."""
        for event, callback in self._callbacks.items():
            self.sdk_room.off(event, callback)
        self._callbacks.clear()
        for topic in self._topics:
            self.sdk_room.unregister_text_stream_handler(topic)
        self.sdk_room.unregister_byte_stream_handler(AGENT_MESSAGES)

    def see_agents(self) -> None:
        """Those that are there already."""
        for participant in self.sdk_room.remote_participants.values():
            self._see_agent(participant, self.agents.present)

    def _see_agent(
        self, participant: rtc.Participant, tell: Callable[[str, str | None], None]
    ) -> None:
        if _kind(participant) == AGENT:
            tell(participant.identity, participant.attributes.get(AGENT_STATE))

    def _is_agent(self, identity: str) -> bool | None:
        found = self.sdk_room.remote_participants.get(identity)
        return None if found is None else _kind(found) == AGENT

    async def _disconnect(self, reason: rtc.DisconnectReason.ValueType) -> None:
        try:
            async with asyncio.timeout(LEAVE_TIMEOUT):
                await self.sdk_room.disconnect(reason=reason)
        except TimeoutError:
            logger.warning("LiveKit did not answer our leaving within %g s.", LEAVE_TIMEOUT)

    def _end(self) -> None:
        self._left = True
        if self._announced is not None:
            self._announced.cancel()
        if self._resume_deadline is not None:
            self._resume_deadline.cancel()

    async def _flush(self) -> None:
        """Waits until what we sent is on the wire: until no more packets go out.

        The SDK tells when it has accepted a text, which is before the data channel has sent it.
        """
        if time.monotonic() - self._sent_at > FLUSH_TIMEOUT or not self.sdk_room.isconnected():
            return
        before = -1
        # RuntimeError is the SDK's word for a connection that is lost meanwhile.
        with suppress(TimeoutError, RuntimeError):
            async with asyncio.timeout(FLUSH_TIMEOUT):
                while (sent := await self._packets_sent()) != before:
                    before = sent
                    await asyncio.sleep(FLUSH_QUIET)

    async def _packets_sent(self) -> int:
        stats = await self.sdk_room.get_rtc_stats()
        return sum(
            entry.transport.transport.packets_sent
            for entry in stats.publisher_stats
            if entry.WhichOneof("stats") == "transport"
        )

    def announce(self) -> None:
        """Makes the server tell the room of us now instead of with its next batch, up to 3 s later.

        Sends wait for it; reading does not. From now on it is done again after each reconnect.
        """
        self._announces = True
        if not self.sdk_room.local_participant.permissions.hidden:
            self._announced = asyncio.create_task(self._announce())

    async def _announce(self) -> None:
        echoed = asyncio.Event()
        room = self.sdk_room
        begun = time.monotonic()

        def on_updated(identities: list[str]) -> None:
            if self.identity in identities:
                echoed.set()

        if isinstance(room, NativeRoom):
            room.on_participants_updated = on_updated
        else:
            echoed.set()
        try:
            async with asyncio.timeout(ANNOUNCE_TIMEOUT):
                await self._api.room.update_participant(
                    api.UpdateParticipantRequest(
                        room=self.name, identity=self.identity, attributes={ANNOUNCEMENT: ""}
                    )
                )
                await echoed.wait()
        except _API_ERRORS as error:
            # Texts still go out; an agent may ignore those of the next 3 seconds.
            logger.warning("Joining was not announced at once (%s).", type(error).__name__)
        finally:
            if isinstance(room, NativeRoom) and room.on_participants_updated is on_updated:
                room.on_participants_updated = None
        if any(_kind(other) == AGENT for other in room.remote_participants.values()):
            # A machine that is slow to echo is slow to tell the agent, too.
            await asyncio.sleep(max(AGENT_SETTLING, 2 * (time.monotonic() - begun)))

    async def _ready_to_send(self, sender: str | None) -> None:
        if (announced := self._announced) is not None:
            await asyncio.wait({announced})
            if self._announced is announced:
                self._announced = None
        self.require_sending(sender)

    def require_sending(self, sender: str | None) -> None:
        # While the SDK reconnects it takes texts, and may lose them; so it does while we leave.
        if self._left or not self.is_connected:
            raise LiveKitUnavailable("The connection to LiveKit is broken.")
        room = self.sdk_room
        # What LiveKit would drop of a participant's own must not come in on its behalf either.
        author = (
            room.local_participant if sender is None else room.remote_participants.get(sender, None)
        )
        if author is not None and not author.permissions.can_publish_data:
            raise NotPermitted(NOT_PERMITTED)

    def _on_participant_connected(self, participant: rtc.RemoteParticipant) -> None:
        self._messages.came()
        if not self._left:
            self._listener.emit(
                ParticipantConnected(
                    participant_identity=participant.identity,
                    kind=_kind(participant),
                    name=participant.name,
                    attributes=participant.attributes,
                )
            )
            self._see_agent(participant, self.agents.changed)

    def _on_participant_disconnected(self, participant: rtc.RemoteParticipant) -> None:
        reason = participant.disconnect_reason
        if not self._left:
            self._messages.left(participant.identity)
            self._listener.emit(
                ParticipantDisconnected(
                    participant_identity=participant.identity,
                    reason=None if reason is None else _word(rtc.DisconnectReason, reason),
                )
            )

    def _on_attributes_changed(self, changed: dict[str, str], participant: rtc.Participant) -> None:
        if not self._left and participant.identity != self.identity:
            self._listener.emit(
                ParticipantAttributesChanged(
                    participant_identity=participant.identity,
                    changed=changed,
                    attributes=participant.attributes,
                )
            )
            self._see_agent(participant, self.agents.changed)

    def _on_reconnecting(self) -> None:
        if self._left or self._resume_deadline is not None:
            return
        self._resume_deadline = asyncio.get_running_loop().call_later(RESUME_TIMEOUT, self._give_up)
        self._listener.reconnecting()

    def _on_reconnected(self) -> None:
        if self._left or self._resume_deadline is None:
            return
        self._resume_deadline.cancel()
        self._resume_deadline = None
        if self._announces:
            self.announce()  # the server may have lost us meanwhile, and tells of us anew
        self._listener.reconnected()

    def _give_up(self) -> None:
        self._end()
        self._losing = asyncio.create_task(self._given_up())

    async def _given_up(self) -> None:
        try:
            await self._disconnect(rtc.DisconnectReason.USER_UNAVAILABLE)
        finally:
            await self._lost(LostReason.DISCONNECTED)

    def _on_disconnected(self, reason: rtc.DisconnectReason.ValueType) -> None:
        if self._left:
            return
        self._end()
        self._losing = asyncio.create_task(self._lost(_LOST.get(reason, LostReason.DISCONNECTED)))

    async def _lost(self, reason: LostReason) -> None:
        """Tells of the loss once the readers have told of the streams that it broke."""
        await self._incoming.end()
        await self._messages.end()
        self.agents.end()
        self._part()
        if self._leaving is None:
            self._listener.lost(reason)


def _participant(participant: rtc.Participant) -> Participant:
    permissions = participant.permissions
    return Participant(
        identity=participant.identity,
        sid=participant.sid,
        name=participant.name,
        kind=_kind(participant),
        state=_word(rtc.ParticipantState, participant.state, "PARTICIPANT_STATE_"),
        attributes=participant.attributes,
        can_publish_data=permissions.can_publish_data,
        hidden=permissions.hidden,
    )


def _kind(participant: rtc.Participant) -> str:
    return _word(rtc.ParticipantKind, participant.kind, "PARTICIPANT_KIND_")


@lru_cache
def _word(enum: Any, value: int, prefix: str = "") -> str:
    """LiveKit's word for the value; `unknown` for one that is newer than our SDK."""
    if value not in enum.values():
        return "unknown"
    name: str = enum.Name(value)
    return name.removeprefix(prefix).lower()


class _LiveKitWriter(TextStreamWriter):
    def __init__(
        self, room: _LiveKitRoom, writer: rtc.TextStreamWriter, sender: str | None
    ) -> None:
        self.header = StreamHeader(writer.info.stream_id, writer.info.timestamp)
        self._room = room
        self._writer = writer
        self._sender = sender
        self._sender_seen = False
        self._ended = False

    async def write(self, text: str) -> None:
        self._require_sending()
        async with self._room.taking():
            await self._writer.write(text)

    def _require_sending(self) -> None:
        self._room.require_sending(self._sender)
        if self._sender is not None:
            seen = self._sender in self._room.identities
            if self._sender_seen and not seen:
                raise NotPermitted("The participant has left the room; its text is not complete.")
            self._sender_seen = seen

    async def close(self, attributes: Mapping[str, str] | None = None) -> None:
        self._require_sending()
        self._ended = True
        async with self._room.taking():
            await self._writer.aclose(attributes=dict(attributes or {}))

    async def abort(self, reason: str) -> None:
        if self._ended:
            return  # the close failed, and the SDK takes no second one
        self._ended = True
        if not self._room.local.can_publish_data:
            raise NotPermitted(NOT_PERMITTED)
        aborting = self._room.see_through(self._abort(reason))
        # While the SDK mends its connection, whoever asked is not made to wait for that.
        if self._room.is_connected:
            await asyncio.wait({aborting})

    async def _abort(self, reason: str) -> None:
        # Nobody is left to tell if it fails: receivers see the sender's connection end instead.
        with suppress(LiveKitUnavailable):
            async with self._room.taking(RESUME_TIMEOUT + LEAVE_TIMEOUT):
                await self._writer.aclose(reason=reason)

"""The cure for what LiveKit's SDK costs: all that we touch of its private parts is in this folder.

The stock SDK hands every event of its native library to every room and every request of the process,
subscribes to all of them for each text that is sent, and passes the library's debug log through Python.
Here an event is left in an inbox, which no thread has to wait for, and goes to the one that it is for,
found by the handle or the id that it carries; a send waits for its own answer alone; the log stays off;
and the library's threads interrupt nobody. What nobody of ours has claimed goes the stock
way, so that stock rooms, readers and requests work beside ours.

Three facts do not come out of the SDK's public face either: a stream's header as it was sent
(`TextStreamInfo` drops reply_to_stream_id, version, operation and generated, and says 0 for an unknown
size); when a stream's trailer came, which shows the order of its sender's closings; and the arrival of
participant updates that change nothing, which is the echo of our own announcement.

`cured_room` checks at start that the installed SDK has these parts (`parts.py`). If it lacks one,
the stock room is used, and one warning says what is lost.
"""

import asyncio
import logging

from livekit import rtc

from gateway.errors import NotSupported
from gateway.rooms.base import StreamHeader, TextOptions
from gateway.rooms.native.dispatch import DISPATCH
from gateway.rooms.native.parts import missing_parts
from gateway.rooms.native.room import NativeRoom, stock_writer

logger = logging.getLogger(__name__)


def cured_room(*, log: bool = False) -> type[rtc.Room]:
    """The room to join with: NativeRoom if the installed SDK has the parts that we touch, else the stock one.

    To be called on the event loop on which the rooms are used. With `log`, the native library's
    warnings and errors come to Python's logging, tokens and all: our formatter takes them out.
    """
    if missing := missing_parts():
        logger.warning(
            "This version of the LiveKit SDK (%s) is another than we know (%s): connections to LiveKit"
            " cost more processor time and memory, reply_to_stream_id, version and operation of received"
            " streams are not shown, their closings may be out of order, and first messages wait a little"
            " longer.",
            rtc.__version__,
            ", ".join(missing),
        )
        return rtc.Room
    DISPATCH.install(asyncio.get_running_loop(), log)
    return NativeRoom


async def send_text(
    room: rtc.Room,
    text: str,
    options: TextOptions,
    *,
    sender_identity: str | None = None,
    within: float,
) -> StreamHeader:
    """One stream with the whole text; returns when the SDK has taken it.

    `sender_identity`: on behalf of whom; the server lets agents do that. Raises rtc.StreamError,
    TimeoutError after `within` seconds, and NotSupported.
    """
    if isinstance(room, NativeRoom):
        return await room.send_text(text, options, sender_identity, within)
    async with asyncio.timeout(within):
        return await _send_stock(room, text, options, sender_identity)


async def _send_stock(
    room: rtc.Room,
    text: str,
    options: TextOptions,
    sender_identity: str | None,
) -> StreamHeader:
    _require_stock(options)
    if sender_identity is None and options.stream_id is None:
        info = await room.local_participant.send_text(
            text,
            topic=options.topic,
            destination_identities=list(options.destination_identities),
            attributes=dict(options.attributes),
            reply_to_id=options.reply_to_stream_id,
        )
        return StreamHeader(info.stream_id, info.timestamp)
    # The public face of whole texts has neither option, that of streams has both.
    writer = await open_text_stream(room, options, sender_identity=sender_identity)
    if text:
        await writer.write(text)
    await writer.aclose()
    return StreamHeader(writer.info.stream_id, writer.info.timestamp)


async def open_text_stream(
    room: rtc.Room, options: TextOptions, *, sender_identity: str | None = None
) -> rtc.TextStreamWriter:
    """A stream that is open. Raises rtc.StreamError and NotSupported."""
    if isinstance(room, NativeRoom):
        return await room.open_text_stream(options, sender_identity)
    _require_stock(options)
    writer = stock_writer(rtc.TextStreamWriter, room, options, sender_identity)
    await writer._send_header()
    return writer


def _require_stock(options: TextOptions) -> None:
    """Raises NotSupported where the SDK's public face cannot say what is to be sent."""
    if options.operation != "create" or options.version or options.generated:
        raise NotSupported(
            "'operation', 'version' and 'generated' cannot be sent with this version of the LiveKit SDK."
        )
    if options.attached_stream_ids:
        raise NotSupported(
            "'attached_stream_ids' cannot be sent with this version of the LiveKit SDK."
        )

"""The private parts of LiveKit's SDK that we touch, all of them, and nothing else.

Two facts do not come out of the SDK's public face: a stream's header as it was sent (`TextStreamInfo`
drops reply_to_stream_id, version, operation and generated, and says 0 for an unknown size), and the
arrival of participant updates that change nothing, which is the echo of our own announcement.

`observable_room` checks at start that the installed SDK has the parts it overrides. If it does not,
the stock room is used and one warning says what is lost: those header members stay at their
defaults, and a send after a join waits for a time instead of for the echo.
"""

import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from livekit import rtc

logger = logging.getLogger(__name__)

_OPERATIONS = {0: "create", 1: "update", 2: "delete", 3: "reaction"}


@dataclass(frozen=True, slots=True)
class NativeHeader:
    """What a stream's header carries beside what TextStreamInfo shows."""

    size: int | None
    reply_to_stream_id: str | None
    generated: bool
    operation: str
    version: int


class ObservableRoom(rtc.Room):
    """A stock room that lets us see the two facts on their way in."""

    def __init__(self) -> None:
        super().__init__()
        self.header: NativeHeader | None = None
        """Of the stream whose handler is running: handlers are called synchronously."""
        self.on_participants_updated: Callable[[list[str]], None] | None = None

    def _handle_text_stream_opened(self, opened: Any) -> None:
        self.header = _native_header(opened.reader.info)
        try:
            super()._handle_text_stream_opened(opened)
        finally:
            self.header = None

    def _on_room_event(self, event: Any) -> None:
        super()._on_room_event(event)
        if (
            self.on_participants_updated is not None
            and event.WhichOneof("message") == "participants_updated"
        ):
            updated = event.participants_updated.participants
            self.on_participants_updated([info.identity for info in updated])


def _native_header(info: Any) -> NativeHeader:
    return NativeHeader(
        size=info.total_length if info.HasField("total_length") else None,
        reply_to_stream_id=info.reply_to_stream_id or None,
        generated=info.generated,
        operation=_OPERATIONS.get(info.operation_type, "create"),
        version=info.version,
    )


def observable_room(stock: type[rtc.Room] = rtc.Room) -> type[rtc.Room]:
    """ObservableRoom if the installed SDK has the parts that it overrides, else the stock room."""
    missing = [
        name
        for name, parameters in (
            ("_handle_text_stream_opened", ["self", "opened"]),
            ("_on_room_event", ["self", "event"]),
        )
        if not _has_method(stock, name, parameters)
    ]
    if missing:
        logger.warning(
            "This version of the LiveKit SDK (%s) has no %s: reply_to_stream_id, version and operation"
            " of received streams are not shown, and first messages wait a little longer.",
            rtc.__version__,
            " and no ".join(missing),
        )
        return stock
    return ObservableRoom


def _has_method(owner: type, name: str, parameters: list[str]) -> bool:
    method = getattr(owner, name, None)
    return inspect.isfunction(method) and list(inspect.signature(method).parameters) == parameters

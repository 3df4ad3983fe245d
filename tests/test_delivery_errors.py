"""The pump goes on where one whom it calls fails in a way that nobody expected."""

import asyncio
from typing import Any

from gateway.delivery import Deadline, Piece, Pump
from gateway.event_log import EventLog, LogBounds
from gateway.events import ClosingReason, StreamChunk
from gateway.metrics import Metrics
from gateway.web import sse
from gateway.web.forms import EVENT_STREAM, FORMS, View
from tests.outlets import Socket


class Broken(Exception):
    pass


async def test_a_reader_that_cannot_be_written_to_holds_up_no_other() -> None:
    errors: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    pump = Pump(Metrics(), heartbeat=0.1, write_timeout=30.0)
    log, other = (EventLog(sse.encode, LogBounds(), "t") for _ in range(2))
    broken, behind_it, elsewhere = (Socket() for _ in range(3))
    never = Deadline(asyncio.get_running_loop().time() + 3600, ClosingReason.MAX_AGE)
    form = FORMS[EVENT_STREAM, View.STREAMS]
    followers = []
    for read, socket in ((log, broken), (log, behind_it), (other, elsewhere)):
        begun = iter([Piece(b"begun", ends_event=True)])
        followers.append(pump.follow(read, frozenset("t"), form, socket, begun, 0, never))
        await socket.until(b"heartbeat")
    broken.error = Broken()
    for each in (log, other):
        each.append(StreamChunk("s", "t", "bob", 0, "said"))
    for socket in (behind_it, elsewhere):
        await socket.until(b"said")
    is_over = [follower.over.done() for follower in followers]
    for follower in followers:
        follower.lost()

    assert is_over == [True, False, False]  # who misses something comes back for it
    assert [type(error["exception"]) for error in errors] == [Broken]

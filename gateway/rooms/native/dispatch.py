"""Each event of the SDK's native library, handed to the one that it is for.

It is found by the handle or the id that the event carries. What nobody of ours has claimed goes the
stock way, so that stock rooms, readers and requests work beside ours.
"""

import asyncio
import atexit
import ctypes
import logging
import math
import os
import signal
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager, suppress
from ctypes import c_bool, c_char_p, c_size_t, c_uint64, c_void_p
from functools import partial
from typing import Any

from livekit import rtc

from gateway.rooms.native.inbox import CompiledInbox, Inbox, InterpretedInbox, NotCompiled
from gateway.rooms.native.parts import KEYS, ffi_client, ffi_pb2

logger = logging.getLogger(__name__)

sdk_logger = logging.getLogger("livekit")

ABANDONED = "sender_gave_up"
"""The reason that receivers see of a stream whose opening took longer than its sender waited."""

SWEEP = 1.0
"""Seconds between two looks for sends that have waited too long."""

Key = tuple[str, int]
"""The kind of a native event, and the handle or id in it that says for whom it is."""

_LOG_LEVELS = {0: logging.ERROR, 1: logging.WARNING}
"""Of the native library's levels, those that are passed on: below them it logs what users write."""


LAST_CALLS = 0.1
"""Seconds at exit for threads of the library that are in the middle of a call."""


class Dispatch:
    """Hands each native event to whom it is for. One per process, as the native library is."""

    def __init__(self) -> None:
        self._inbox: Inbox | None = None
        self._interpreted = InterpretedInbox(self._without_a_loop)
        self._arrived: deque[bytes] = deque()
        self._loop: Any = None
        self._ending: Any = None
        self._log = False
        self._answers: dict[Key, tuple[asyncio.Future[Any], float]] = {}
        self._sweeping = False
        self._routes: dict[Key, Callable[[Any], None]] = {}
        self._request: Any = None
        self._drop: Any = None
        self._response = c_void_p()
        self._response_size = c_size_t()
        self._response_at = ctypes.addressof(self._response)
        self._response_size_at = ctypes.addressof(self._response_size)

    def install(self, loop: asyncio.AbstractEventLoop, log: bool) -> None:
        """Has the library's events come here until the loop is closed; then they go the stock way again."""
        if self._request is None:
            _set_up()
            # By index a function is one of our own, whose types are not the SDK's.
            library = ffi_client.FfiClient.instance._ffi_lib
            self._request = library["livekit_ffi_request"]
            self._request.argtypes = (c_char_p, c_size_t, c_void_p, c_void_p)
            self._request.restype = c_uint64
            self._drop = library["livekit_ffi_drop_handle"]
            self._drop.argtypes = (c_uint64,)
        if self._inbox is None:
            self._inbox = _compiled() or self._interpreted
        self._log = log
        if self._loop is not loop:
            self._begin(loop, self._inbox)
        # The SDK has initialized the library with a callback of its own; the later one counts.
        _initialize(self._inbox.callback, log)

    def _begin(self, loop: asyncio.AbstractEventLoop, inbox: Inbox) -> None:
        # What is left is of an earlier loop, which has ended with its rooms, and without a word to us.
        self._arrived.clear()
        self._routes.clear()
        self._answers.clear()
        self._sweeping = False
        self._loop = loop
        inbox.attach(loop, partial(self._drain, inbox))
        if isinstance(inbox, CompiledInbox):
            self._ending = self._until_the_loop_ends(loop, inbox)
            with suppress(StopIteration):
                self._ending.__anext__().send(None)

    async def _until_the_loop_ends(
        self, loop: asyncio.AbstractEventLoop, inbox: CompiledInbox
    ) -> AsyncGenerator[None]:
        """Whoever runs a loop ends its asynchronous generators before closing it, and after its tasks (asyncio.run
        does). From then on events come in by Python, which sees when it is closed; C does not."""
        try:
            yield
        finally:
            if self._loop is loop:  # else a later one has taken its place
                self._interpreted.attach(loop, partial(self._drain, inbox, self._interpreted))
                _initialize(self._interpreted.callback, self._log)

    def _without_a_loop(self) -> None:
        """The loop is closed, and its rooms are gone; what still comes is for others, or for nobody."""
        self._routes.clear()
        self._answers.clear()
        for data in self._interpreted.take():
            self._dispatch(data)

    def route(self, key: Key, to: Callable[[Any], None]) -> None:
        """Events with that key go there from now on, and nowhere else."""
        self._routes[key] = to

    def unroute(self, key: Key) -> None:
        self._routes.pop(key, None)

    async def ask(self, request: Any, asked: str, answered: str, deadline: float = math.inf) -> Any:
        """Makes the native request `asked` and returns the event `answered`.

        Raises rtc.StreamError, or TimeoutError within a sweep of `deadline`, a time of the loop.
        """
        key = (answered, getattr(self.request(request), asked).async_id)
        answer: asyncio.Future[Any] = self._loop.create_future()
        self._answers[key] = (answer, deadline)
        if not self._sweeping:
            self._sweep()
        try:
            event = await answer
        except asyncio.CancelledError:
            if answer.done() and not answer.cancelled() and answer.exception() is None:
                _abandon(answer.result())
            raise
        finally:
            if answered != "text_stream_open":  # which is abandoned when it comes
                self._answers.pop(key, None)
        body = getattr(event, answered)
        if body.HasField("error"):
            # Of a trailer that is sent by itself the error is a word, not a message.
            raise rtc.StreamError(getattr(body.error, "description", body.error))
        return event

    def _sweep(self) -> None:
        """One timer for all that wait: one for each send costs as much as a tenth of the send."""
        self._sweeping = bool(self._answers)
        if self._sweeping:
            self._loop.call_later(SWEEP, self._sweep)
        now = self._loop.time()
        for answer, deadline in self._answers.values():
            if deadline < now and not answer.done():
                answer.set_exception(TimeoutError())

    def request(self, request: Any) -> Any:
        """The library's immediate response. What FfiClient.request does, in half of its time."""
        data = request.SerializeToString()
        handle = self._request(data, len(data), self._response_at, self._response_size_at)
        if not handle:
            raise RuntimeError("The LiveKit SDK does not take the request.")
        response = ctypes.string_at(self._response.value or 0, self._response_size.value)
        self._drop(handle)
        return ffi_pb2.FfiResponse.FromString(response)

    def _drain(self, *inboxes: Inbox) -> None:
        for inbox in inboxes:
            self._arrived.extend(inbox.take())
        try:
            while self._arrived:
                self._dispatch(self._arrived.popleft())
        finally:
            # An error of whoever was called goes to the loop, which logs it, and does not hold up the rest.
            if self._arrived:
                self._loop.call_soon(self._drain, *inboxes)

    def _dispatch(self, data: bytes) -> None:
        event = ffi_pb2.FfiEvent.FromString(data)
        kind = event.WhichOneof("message")
        if kind in KEYS:
            key = (kind, getattr(getattr(event, kind), KEYS[kind]))
            if (to := self._routes.get(key)) is not None:
                to(event)
                return
            if (waiting := self._answers.pop(key, None)) is not None:
                _answer(waiting[0], event)
                return
        if kind == "logs":
            _log(event.logs.records)
        elif kind == "panic":
            _end_process(event.panic.message)
        else:
            ffi_client.FfiClient.instance.queue.put(event)


def _compiled() -> CompiledInbox | None:
    try:
        return CompiledInbox()
    except NotCompiled as lack:
        logger.warning(
            "What LiveKit's library tells comes by way of Python's interpreter (%s): texts take up to a half more"
            " processor time. Where there is a C compiler, `make install` compiles what avoids that, once no"
            " gateway/rooms/native/_inbox* is there.",
            lack,
        )
        return None


def _set_up() -> None:
    """What the library finds when it is first used, and what it needs at the end of the process."""
    # With its log off the library writes errors on standard error by itself, tokens and all,
    # unless it finds this.
    os.environ["RUST_LOG"] = "off"
    with _threads_that_interrupt_nobody():
        _ = ffi_client.FfiClient.instance  # which is made, and initializes the library
    # After the SDK's own, whose turn at exit comes after ours then.
    atexit.register(_silence)


@contextmanager
def _threads_that_interrupt_nobody() -> Iterator[None]:
    """Has the threads that are begun meanwhile, and those that they begin, wait for a processor until it is free.

    A send wakes the library's threads, and they each other, some 25 times. Each time one of them would take the
    interpreter's processor from it, also while another is idle (sched(7), SCHED_BATCH).
    """
    changed = False
    # It is Linux's; a policy that somebody else has chosen we could not always come back to.
    if hasattr(os, "SCHED_BATCH") and os.sched_getscheduler(0) == os.SCHED_OTHER:
        with suppress(OSError):  # some sandboxes refuse it
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
            changed = True
    try:
        yield
    finally:
        if changed:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def _initialize(callback: Any, log: bool) -> None:
    initialize = ffi_client.FfiClient.instance._ffi_lib["livekit_ffi_initialize"]
    initialize.argtypes = (c_void_p, c_bool, c_char_p, c_char_p)
    initialize(ctypes.cast(callback, c_void_p), log, b"python", rtc.__version__.encode())


def _silence() -> None:
    """Has the library call nobody any more, at exit.

    A thread of it that enters an interpreter which is ending is ended by that, and the library aborts
    the process (seen: 17 of 200 exits right after a refused join). It cannot be told to call nothing,
    so it calls a function of C that does nothing with what it is given.
    """
    _initialize(ctypes.CDLL(None).getpid, log=False)
    # Those that have entered wait for the interpreter, and get it while we sleep.
    time.sleep(LAST_CALLS)


def _log(records: Any) -> None:
    for record in records:
        if (level := _LOG_LEVELS.get(record.level)) is not None:
            sdk_logger.log(level, "%s: %s", record.target, record.message)


def _answer(answer: asyncio.Future[Any], event: Any) -> None:
    if answer.done():  # by cancellation or timeout
        _abandon(event)
    else:
        answer.set_result(event)


def _abandon(event: Any) -> None:
    """Closes a stream that was opened after nobody wanted it any more: it would stay open for ever."""
    if event.text_stream_open.HasField("writer"):
        request = ffi_pb2.FfiRequest()
        request.text_stream_close.writer_handle = event.text_stream_open.writer.handle.id
        request.text_stream_close.reason = ABANDONED
        DISPATCH.request(request)


def _end_process(message: str) -> None:
    """What the stock SDK does: after a panic nothing that the library does can be counted on."""
    logger.critical("The native library of the LiveKit SDK has panicked: %s", message)
    os.kill(os.getpid(), signal.SIGTERM)


DISPATCH = Dispatch()

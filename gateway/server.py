"""The HTTP server: uvicorn, with what it leaves open closed. Only here and in `__main__` is it named."""

import asyncio
import contextlib
import logging
import os
import re
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from http import HTTPStatus
from typing import Any, Protocol

import httptools
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from gateway.web import problems

BACKLOG = 2_048
"""Connections that the kernel holds while we are busy: a deploy brings all clients back at once."""

KEEP_ALIVE = 75
"""Seconds an idle HTTP connection is kept; longer than the 60 of nginx and common load balancers, so
that it is them who close it and no request meets a closing socket."""

HEAD_BYTES = 64 * 1024
"""Of request line and headers together, or of trailers; the token alone may have 16 KiB. nginx takes
32, node 16."""


HEAD_TIMEOUT = 20.0
"""Seconds that a client has for a head, from its first byte on or from connecting; a head is one packet or two."""

UNSENT_BYTES = 128 * 1024
"""Of one connection that the kernel takes from us beyond what is on its way; it would take 4 MiB, from each client
that reads nothing (tcp(7), TCP_NOTSENT_LOWAT)."""

DEAD_AFTER = 60
"""Seconds without a sign of life from a peer's kernel after which it is taken for gone, while something is on its
way to it, as a heartbeat is; without it, that takes a quarter of an hour (tcp(7), TCP_USER_TIMEOUT)."""


LINGER = 0.5
"""Seconds in which what a client still sends after our last answer is read and dropped. Closed with something
unread, a connection is reset, which takes an answer from who has not read it yet (RFC 9112, 9.6). Shorter than the
shortest time that a stop of the server takes."""

LAST_CALL = 0.9
"""Part of the time that requests have to end in after which readers of bodies without an end are dropped."""

_logger = logging.getLogger("gateway.http")
# uvicorn warns of each request that is none; anybody could fill the log with that.
_logger.setLevel(logging.ERROR)

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
"""The interim answer, as uvicorn writes it."""

_OFFERS = re.compile(rb"\r\n(?:upgrade|http2-settings)[ \t]*:[^\r\n]*", re.IGNORECASE)


class _Answers(asyncio.Transport):
    """A transport as answers are written to it: a head goes out with the beginning of its body.

    ASGI wants it so. A short answer is one packet then, which wakes its reader once; and it goes out
    when the loop comes round, with those of the other requests that were ready in the same round: one
    process that has sent many of them is woken once, and not for each.
    """

    __slots__ = ("_beginning", "_head", "_protocol", "_transport", "in_body", "is_over")

    def __init__(self, transport: asyncio.Transport, protocol: "HttpProtocol") -> None:
        self._transport = transport
        self._protocol = protocol
        self._head = b""
        self._beginning = b""
        self.in_body = False
        self.is_over = False
        """Whether there is no other answer: what a client still sends is dropped."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.is_over:
            pass  # of an app that has not heard yet that its request was refused
        elif self.in_body or data == _CONTINUE:
            self.flush()
            self._transport.write(data)
        elif not self._head:
            self._head = bytes(data)
        else:
            self.flush()
            self.in_body = True
            if self._transport.is_closing():  # it still takes what comes before the rest is out
                self._transport.write(self._head + data)
            else:
                self._beginning = self._head + data
                self._protocol.loop.call_soon(self.flush)

    def flush(self) -> None:
        """What has begun is written now: before anything else is, or the end of the connection."""
        if self._beginning:
            beginning, self._beginning = self._beginning, b""
            with contextlib.suppress(RuntimeError):  # the client has gone
                self._transport.write(beginning)

    def end_answer(self) -> None:
        """What is written next begins another."""
        if not self.in_body and self._head and not self.is_over:
            self.flush()
            self._transport.write(self._head)  # to a HEAD, or where the app failed: without a body
        self._head = b""
        self.in_body = False

    def is_closing(self) -> bool:
        return self.is_over or self._transport.is_closing()

    def close(self) -> None:
        self.end_answer()
        self._protocol.finish()


def _as_it_is(data: bytes) -> bytes:
    """HTTP/1.0 has no chunks: the end of the connection is that of the body."""
    return data


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Listener(Protocol):
    """Whom an outlet tells how it is."""

    def blocked(self) -> None:
        """More has been written than the client takes now."""

    def writable(self) -> None:
        """It takes more again."""

    def lost(self) -> None:
        """It has gone."""


class Outlet:
    """The body of one answer after its head, for who writes it beside ASGI, and without waiting.

    Its end is ASGI's again.
    """

    __slots__ = (
        "_answers",
        "_is_clear",
        "_listener",
        "_socket",
        "_transport",
        "frame",
        "is_blocked",
    )

    def __init__(
        self,
        transport: asyncio.Transport,
        answers: _Answers,
        frame: Callable[[bytes], bytes],
    ) -> None:
        self.frame = frame
        self.is_blocked = False
        self._answers = answers
        self._transport = transport
        self._socket: int = transport.get_extra_info("socket").fileno()
        self._listener: Listener | None = None
        self._is_clear = False

    def write(self, data: bytes) -> None:
        """Takes what `frame` made. Raises RuntimeError where the client has gone.

        To the socket at once, where nothing waits before it: uvloop would gather it first, and touch for that
        what of an idle connection is in no cache of the processor. So would asking it whether anything waits.
        """
        transport = self._transport
        # A socket that is closing may be somebody else's by its number before we are told.
        if transport.is_closing() or not (self._is_clear or self._clears()):
            self._answers.write(data)
            return
        try:
            written = os.write(self._socket, data)
        except OSError:  # full, or broken: the transport finds out which
            written = 0
        if written < len(data):
            self._is_clear = False
            transport.write(memoryview(data)[written:])

    def _clears(self) -> bool:
        """Whether nothing waits, or is written by others: then that stays so, until we write too much."""
        self._answers.flush()
        self._is_clear = self._answers.in_body and not self._transport.get_write_buffer_size()
        return self._is_clear

    def end(self) -> None:
        """The connection is ASGI's again."""
        self._is_clear = False

    def follow(self, listener: Listener) -> None:
        """Has it told how the client is; at once, where it has gone already."""
        self._listener = listener
        if self._transport.is_closing():
            listener.lost()

    def unsent(self) -> int:
        """Bytes that the client has not taken yet."""
        return self._transport.get_write_buffer_size()

    def abort(self) -> None:
        """Drops a client that takes nothing: closing would wait for it."""
        self._transport.abort()

    def block(self, blocked: bool) -> None:
        self.is_blocked = blocked
        if self._listener is not None:
            (self._listener.blocked if blocked else self._listener.writable)()

    def lose(self) -> None:
        if self._listener is not None:
            self._listener.lost()


class _Pipeline(list[Any]):
    """Requests that wait for the one before; a deque costs 700 bytes, and nearly always is empty."""

    __slots__ = ()

    def appendleft(self, waiting: Any) -> None:
        self.insert(0, waiting)


class _FlowControl(FlowControl):
    """uvicorn's, without an event that nobody waits for, of another 800 bytes."""

    __slots__ = ("_transport", "_writable", "read_paused", "write_paused")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._writable: asyncio.Event | None = None
        self.read_paused = False
        self.write_paused = False

    async def drain(self) -> None:
        if self._writable is None:
            self._writable = asyncio.Event()
        await self._writable.wait()

    def pause_writing(self) -> None:
        self.write_paused = True

    def resume_writing(self) -> None:
        self.write_paused = False
        if self._writable is not None:
            self._writable.set()
            self._writable = None


class _Unheard:
    """In the place of the event that tells of a request's body, for a request that has none."""

    def set(self) -> None:
        pass


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol with what it lacks: a bound on heads and trailers, our errors, offers to
    upgrade ignored (RFC 9110, 7.8), trailers kept out of the headers (6.5.1), heads sent with bodies."""

    _answers: _Answers
    _outlet: Outlet | None = None
    _in_head = True
    _between_messages = True
    _progress = False
    """Whether the parser has delivered a part of a message from the data at hand."""
    _head_timer: asyncio.TimerHandle | None = None
    _undelivered = 0
    """Bytes that it has taken since: of a head, or of trailers, that do not end."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.logger = _logger
        self._answers = _Answers(transport, self)
        self.flow = _FlowControl(transport)
        self._await_head()
        self.pipeline = _Pipeline()  # type: ignore[assignment]

    def on_message_begin(self) -> None:
        self._progress = True
        super().on_message_begin()
        self._in_head = True
        self._between_messages = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._progress = True
        self._in_head = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        if self.parser.should_upgrade():
            # The parser takes the message to end here, and its body for another protocol's: the text
            # would be lost, and answered as an empty one.
            self._refuse(
                400, "malformed_request", "Offers to upgrade are not taken; leave them out."
            )
        else:
            super().on_headers_complete()
            self.cycle.transport = self._answers
            # For who would set up a wait for what is there already, as the body of a short text is.
            self.scope["state"]["ready"] = self.cycle.message_event.is_set
            self.scope["state"]["open_outlet"] = partial(self._open_outlet, self.cycle)

    def _open_outlet(self, cycle: RequestResponseCycle) -> Outlet:
        """For an answer whose head is still to be sent."""
        frame = _chunk
        if cycle.scope["http_version"] == "1.0":
            frame = _as_it_is
            cycle.chunked_encoding = False  # or uvicorn would say that there are chunks
        self._outlet = Outlet(self.transport, self._answers, frame)
        if not cycle.more_body:
            cycle.message_event = _Unheard()  # type: ignore[assignment]
            if cycle is self.cycle and self._between_messages:
                # For hours nothing more may come; what parses it is a tenth of what an idle stream holds.
                self.parser = None  # type: ignore[assignment]
        return self._outlet

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._outlet is not None:
            self._outlet.block(True)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._outlet is not None:
            self._outlet.block(False)

    def eof_received(self) -> None:
        """The transport closes behind this; who has sent all that it will, still reads."""
        self._answers.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        if self._outlet is not None:
            self._outlet.lose()
            self._outlet = None

    def drop_reader(self) -> None:
        """Of a body that is not at its end, if there is one."""
        if self._outlet is not None:
            self._outlet.abort()

    def on_response_complete(self) -> None:
        self._answers.end_answer()
        if self._outlet is not None:
            self._outlet.end()
            self._outlet = None
        if self._answers.is_over:
            self.server_state.total_requests += 1  # the last one: what is behind it is not begun
        else:
            super().on_response_complete()

    def on_chunk_header(self) -> None:
        self._progress = True

    def on_body(self, body: bytes) -> None:
        self._progress = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._progress = True
        self._between_messages = True
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def shutdown(self) -> None:
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None or cycle.response_complete:
            self.finish()
        else:
            super().shutdown()

    def finish(self) -> None:
        """Ends the connection behind what has been answered."""
        if self._between_messages:
            self._end()
        else:
            self._linger()

    def _linger(self) -> None:
        """The client sends, and is not to lose what it has been answered."""
        self._answers.flush()
        if not self._answers.is_over and not self.transport.is_closing():
            self._answers.is_over = True
            self.pipeline.clear()
            cycle: RequestResponseCycle | None = self.cycle
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
            self.flow.resume_reading()
            self.transport.write_eof()
            self.loop.call_later(LINGER, self.transport.close)

    def data_received(self, data: bytes) -> None:
        if self._answers.is_over:
            return
        if self.parser is None:
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        at_beginning = self._between_messages
        self._progress = False
        super().data_received(_without_offers(data) if at_beginning else data)
        if not self._progress:
            self._undelivered += len(data)
        else:
            # Behind the end of another message, how much of the data is this head is not known.
            self._undelivered = len(data) if at_beginning and self._in_head else 0
        if self._in_head and not self._between_messages and self._head_timer is None:
            self._await_head()
        if self._undelivered > HEAD_BYTES and not self._answers.is_closing():
            self._refuse(431, "head_too_large", f"The headers exceed {HEAD_BYTES} bytes.")

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT, self._end)

    def _end(self) -> None:
        self._answers.flush()
        self.transport.close()

    def send_400_response(self, msg: str) -> None:
        self._refuse(
            400,
            "malformed_request",
            "This is not HTTP/1.1; are all but ASCII letters of the address percent-encoded?",
        )

    def _unsupported_upgrade_warning(self) -> None:
        """Nothing: anybody could fill the log with uvicorn's."""

    def _refuse(self, status: int, code: str, detail: str) -> None:
        self._answers.flush()
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None or (cycle.response_complete and self._in_head):
            self._answer(status, code, detail)
        elif cycle.response_complete:
            # The rest of a body that has been answered already: a second answer would be the next request's.
            self.transport.close()
        elif not cycle.more_body:
            # An earlier request is unanswered: what is wrong with a later one must not be taken for its
            # answer, or its sender would send it again. Its own answer ends the connection.
            self.flow.pause_reading()
            cycle.keep_alive = False
        elif cycle.response_started or self.pipeline:
            self.transport.abort()
        else:
            self._answer(status, code, detail)

    def _answer(self, status: int, code: str, detail: str) -> None:
        body = problems.body(status, code, detail)
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
            f"Content-Type: {problems.MEDIA_TYPE}\r\n"
            f"Content-Length: {len(body)}\r\n"
            "Connection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self._linger()


def _without_offers(data: bytes) -> bytes:
    """The beginning of a message without its offer to upgrade, which Java's client and `curl --http2`
    make with every request; one whose head comes in several parts is left as it is, and refused."""
    head, end, rest = data.partition(b"\r\n\r\n")
    if not end or b"upgrade" not in head.lower():
        return data
    return _OFFERS.sub(b"", head) + end + rest


class Server(uvicorn.Server):
    """uvicorn, drained before it stops: it would wait for event streams, which do not end by themselves."""

    def __init__(
        self, app: ASGIApp, drain: Callable[[], Awaitable[None]], *, drain_timeout: float
    ) -> None:
        """`drain_timeout`: seconds that requests have to end in after `drain` has returned."""
        self._exit = asyncio.Event()
        super().__init__(
            uvicorn.Config(
                app,
                http=HttpProtocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,  # whom a client says that it comes from, nothing of ours looks at
                server_header=False,
                backlog=BACKLOG,
                timeout_keep_alive=KEEP_ALIVE,
                timeout_graceful_shutdown=max(1, round(drain_timeout)),
            )
        )
        self._drain = drain

    @property
    def should_exit(self) -> bool:
        return self._exit.is_set()

    @should_exit.setter
    def should_exit(self, value: bool) -> None:
        if value:
            self._exit.set()
        else:
            self._exit.clear()

    async def main_loop(self) -> None:
        """Once a second, for the date of the answers: uvicorn wakes ten times as often, to see whether it should
        exit, which costs a third of what ten thousand heartbeats do."""
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._exit.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT end `serve`, and then the process with status 0: uvicorn's own way ends
        in dying of the signal, which looks like a crash to whoever watches."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._drain()
        seconds = self.config.timeout_graceful_shutdown or 0
        dropping = asyncio.get_running_loop().call_later(seconds * LAST_CALL, self._drop_readers)
        await super().shutdown(sockets)
        dropping.cancel()

    def _drop_readers(self) -> None:
        """Those that take nothing cannot be told that this is the end; uvicorn would log each as an error."""
        for connection in tuple(self.server_state.connections):
            if isinstance(connection, HttpProtocol):
                connection.drop_reader()


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.create_server((host, port), family=family, backlog=BACKLOG)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # on Linux; what is accepted has them too
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_AFTER * 1_000)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
    return listening

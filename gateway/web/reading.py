"""Waiting for a request's body, for as long as there is reason to."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from starlette.requests import ClientDisconnect, Request

from gateway.auth import Caller
from gateway.errors import BodyIdle, NotSupported, TokenExpired, TooManyBodies
from gateway.hub import Hub
from gateway.web.parameters import header_values

Wake = Callable[[], None]

See = Callable[[bytes], None] | None
"""Is shown all bytes of a body, where somebody wants to see them."""

EXPIRED = "The token expired before the text was complete."


SHARES = 4
"""One sender holds no more than such a part of what is held of all."""

RECHECK = 5.0
"""Seconds after which it is looked again whether waiting makes sense: nobody calls back when LiveKit takes a
right away."""


class Interruption(NamedTuple):
    """What ends waiting for a sender."""

    watch: Callable[[Wake], None]
    """Calls back when it has come, at once if it has."""
    unwatch: Callable[[Wake], None]
    check: Callable[[], None]
    """Raises why, if it has come."""


def drain_of(hub: Hub) -> Interruption:
    return Interruption(hub.watch_drain, hub.unwatch_drain, hub.require_not_draining)


def content_length(request: Request) -> int | None:
    """Bytes of the body, where its sender has said: not of one that is chunked."""
    lengths = header_values(request, "content-length")
    return int(lengths[0]) if lengths else None


def is_chunked(request: Request) -> bool:
    """Whether the body comes in chunks, as it is written. Raises NotSupported for other transfer codings."""
    codings = header_values(request, "transfer-encoding")
    if codings and ",".join(codings).strip().lower() != "chunked":
        raise NotSupported("Of transfer codings, chunked is taken and no other (RFC 9112, 6.1).")
    return bool(codings)


async def disconnected(request: Request) -> None:
    """Returns when the client has gone; for after its body."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


class BodyReader:
    """The bytes of one request's body."""

    def __init__(self, request: Request, caller: Caller, idle: float, see: See = None) -> None:
        """`idle`: seconds without a byte after which it is given up."""
        self._receive = request.receive
        # Our own server says it; with another each wait is set up.
        self._is_ready: Callable[[], bool] = request.scope.get("state", {}).get("ready", bool)
        self._ended = False
        self._since = time.monotonic()
        self._expires_at = caller.expires_at
        self._idle = idle
        self._see = see

    async def next(self, *interruptions: Interruption) -> bytes | None:
        """The next bytes, never none; None at the end.

        Raises BodyIdle, TokenExpired, starlette's ClientDisconnect, and what an interruption raises.
        """
        self._since = time.monotonic()
        while not self._ended:
            if data := await self._next(interruptions):
                if self._see is not None:
                    self._see(data)
                return data
        return None

    async def _next(self, interruptions: tuple[Interruption, ...]) -> bytes:
        for interruption in interruptions:
            interruption.check()  # also where the next bytes are there already
        left = self._expires_at - time.time()
        if left <= 0:
            raise TokenExpired(EXPIRED)
        if self._is_ready():
            return await self._taken()
        idle = self._since + self._idle - time.monotonic()
        try:
            async with asyncio.timeout(min(idle, left, RECHECK)) as deadline:

                def wake() -> None:
                    if not deadline.expired():
                        deadline.reschedule(asyncio.get_running_loop().time())

                for interruption in interruptions:
                    interruption.watch(wake)
                try:
                    return await self._taken()
                finally:
                    for interruption in interruptions:
                        interruption.unwatch(wake)
        except TimeoutError:
            for interruption in interruptions:
                interruption.check()
            if time.time() >= self._expires_at:
                raise TokenExpired(EXPIRED) from None
            if time.monotonic() >= self._since + self._idle:
                raise BodyIdle(f"No more of the body came within {self._idle:g} s.") from None
            return b""

    async def _taken(self) -> bytes:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        self._ended = not message.get("more_body", False)
        data: bytes = message.get("body", b"")
        return data


class HeldBytes:
    """What is held of bodies that are handed on whole, of all requests together."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held = 0
        self._of: Counter[str] = Counter()

    def hold(self, identity: str, size: int) -> None:
        """Raises TooManyBodies."""
        if self._of[identity] + size > self._most // SHARES:
            raise TooManyBodies(
                f"The gateway holds as much of whole texts of {identity!r} as it takes of one sender;"
                " try again, or stream the text."
            )
        if self._held + size > self._most:
            raise TooManyBodies(
                "The gateway holds as much of whole texts as it takes; try again, or stream the text."
            )
        self._held += size
        self._of[identity] += size

    def release(self, identity: str, size: int) -> None:
        self._held -= size
        self._of[identity] -= size
        if not self._of[identity]:
            del self._of[identity]

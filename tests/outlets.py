"""What is written to readers, in the place of sockets."""

import asyncio
from collections.abc import Callable

from gateway.delivery import Follower
from tests.running_gateway import DEADLINE


class Socket:
    """See `gateway.delivery.Outlet`."""

    def __init__(
        self,
        error: Exception | None = None,
        take: Callable[[bytes], object] | None = None,
    ) -> None:
        """`error`: what writing to it raises. `take`: is given what is written, which else is kept."""
        self.is_blocked = False
        self.error = error
        self.written: asyncio.Queue[bytes] = asyncio.Queue()
        self._take = self.written.put_nowait if take is None else take
        self.frame: Callable[[bytes], bytes] = _as_it_is

    def write(self, data: bytes) -> None:
        if self.error is not None:
            raise self.error
        self._take(data)

    def follow(self, listener: Follower) -> None:
        pass

    def unsent(self) -> int:
        return 0

    def abort(self) -> None:
        pass

    def taken(self) -> list[bytes]:
        """All that was written until now."""
        return [self.written.get_nowait() for _ in range(self.written.qsize())]

    async def until(self, text: bytes) -> None:
        async with asyncio.timeout(DEADLINE):
            while text not in await self.written.get():
                pass


def _as_it_is(data: bytes) -> bytes:
    return data

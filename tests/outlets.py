"""What is written to readers, in the place of sockets."""

import asyncio
from collections.abc import Callable

from gateway.delivery import Follower
from tests.running_gateway import DEADLINE


class Broken(Exception):
    pass


class Socket:
    """See `gateway.delivery.Outlet`."""

    def __init__(self) -> None:
        self.is_blocked = False
        self.is_broken = False
        self.written: asyncio.Queue[bytes] = asyncio.Queue()

        self.frame: Callable[[bytes], bytes] = _as_it_is

    def write(self, data: bytes) -> None:
        if self.is_broken:
            raise Broken
        self.written.put_nowait(data)

    def follow(self, listener: Follower) -> None:
        pass

    def unsent(self) -> int:
        return 0

    def abort(self) -> None:
        pass

    async def until(self, text: bytes) -> None:
        async with asyncio.timeout(DEADLINE):
            while text not in await self.written.get():
                pass


def _as_it_is(data: bytes) -> bytes:
    return data

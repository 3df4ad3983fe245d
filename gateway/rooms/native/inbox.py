"""Where the SDK's native library leaves its events, and the event loop's thread takes them.

It calls one function on whatever thread of its own has an event. That function is C where a C compiler
was found when we were installed (`inbox.c`), and else Python, which each of these threads has to wait for.
"""

import asyncio
import ctypes
import importlib.util
import struct
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from ctypes import c_size_t, c_void_p
from typing import Any

COMPILED = "gateway.rooms.native._inbox"
"""As Python finds it: the name has no ending, which differs between systems."""

_SIZE = struct.Struct("=Q")
"""What stands before each event."""

CALLBACK = ctypes.CFUNCTYPE(None, c_void_p, c_size_t)


class NotCompiled(Exception):
    """There is no compiled inbox that can be used here; the text says why."""


class Inbox(ABC):
    """Holds events, each serialized, until they are taken; without a bound, for the library cannot be told to wait."""

    callback: Any
    """For the library: a function that takes where an event is, and its size."""

    @abstractmethod
    def attach(self, loop: asyncio.AbstractEventLoop, arrived: Callable[[], None]) -> None:
        """From now on the loop calls `arrived` when there are events to take."""

    @abstractmethod
    def take(self) -> list[bytes]:
        """All that have arrived, in their order."""


class CompiledInbox(Inbox):
    """One for the process, whoever makes it."""

    def __init__(self) -> None:
        """Raises NotCompiled."""
        found = importlib.util.find_spec(COMPILED)
        if found is None or found.origin is None:
            raise NotCompiled("it was not compiled")
        try:
            # Without letting the interpreter go meanwhile: to have it back would take longer than the call.
            library = ctypes.PyDLL(found.origin)
            self.callback = ctypes.cast(library.inbox_put, c_void_p)
            self._take = library.inbox_take
            self._woken: int = library.inbox_open()
        except (OSError, AttributeError) as error:
            raise NotCompiled(str(error)) from error
        if self._woken < 0:
            raise NotCompiled("there is no pipe for it")
        self._take.argtypes = (c_void_p,)
        self._take.restype = c_size_t
        self._events = c_void_p()
        self._events_at = ctypes.addressof(self._events)

    def attach(self, loop: asyncio.AbstractEventLoop, arrived: Callable[[], None]) -> None:
        loop.add_reader(self._woken, arrived)

    def take(self) -> list[bytes]:
        size = self._take(self._events_at)
        if not size:
            return []
        data = ctypes.string_at(self._events.value or 0, size)
        events = []
        at = 0
        while at < size:
            begin = at + _SIZE.size
            at = begin + _SIZE.unpack_from(data, at)[0]
            events.append(data[begin:at])
        return events


class InterpretedInbox(Inbox):
    """The same in Python; and it sees by itself that a loop has been closed."""

    def __init__(self, abandoned: Callable[[], None]) -> None:
        """`abandoned`: called on a thread of the library, with events to take and no loop for them."""
        # The library's threads may call it until the very end of the process.
        self.callback = CALLBACK(self._put)
        self._abandoned = abandoned
        self._events: deque[bytes] = deque()
        self._is_woken = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._arrived: Callable[[], None] = abandoned

    def attach(self, loop: asyncio.AbstractEventLoop, arrived: Callable[[], None]) -> None:
        self._arrived = arrived
        self._loop = loop
        self._is_woken = False

    def take(self) -> list[bytes]:
        # First of all: what arrives from here on is taken below, or wakes the loop again.
        self._is_woken = False
        return [self._events.popleft() for _ in range(len(self._events))]

    def _put(self, event: int, size: int) -> None:
        """Called on the library's threads, which wait for the interpreter meanwhile: so it is short."""
        self._events.append(ctypes.string_at(event, size))
        loop = self._loop
        # A loop that has been closed may have taken the last call with it.
        if loop is not None and (not self._is_woken or loop.is_closed()):
            self._is_woken = True
            try:
                loop.call_soon_threadsafe(self._arrived)
            except RuntimeError:
                self._is_woken = False
                self._abandoned()

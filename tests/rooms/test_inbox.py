"""What the native library leaves on its threads, and the loop takes: compiled and in Python."""

import asyncio
import ctypes
import logging
import os
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.rooms.native import dispatch, inbox as inbox_module
from gateway.rooms.native.inbox import (
    CALLBACK,
    CompiledInbox,
    Inbox,
    InterpretedInbox,
    NotCompiled,
)
from tests.running_gateway import DEADLINE

THREADS = 8
EVENTS = 5_000
"""Of each thread."""

_NUMBERS = struct.Struct("=II")


@pytest.fixture(params=[pytest.param("compiled", marks=pytest.mark.needs("cc")), "interpreted"])
def inbox(request: pytest.FixtureRequest) -> Iterator[Inbox]:
    if request.param == "interpreted":
        yield InterpretedInbox(lambda: None)
        return
    compiled = CompiledInbox()
    compiled.take()  # it is one for the whole process: what earlier tests have left
    yield compiled
    compiled.take()


class Arriving:
    """An inbox on this loop, and what has been taken from it."""

    def __init__(self, inbox: Inbox) -> None:
        self.taken: list[bytes] = []
        self._inbox = inbox
        self._more = asyncio.Event()
        inbox.attach(asyncio.get_running_loop(), self._take)

    def _take(self) -> None:
        self.taken += self._inbox.take()
        self._more.set()

    async def until(self, count: int) -> list[bytes]:
        async with asyncio.timeout(DEADLINE):
            while len(self.taken) < count:
                self._more.clear()
                await self._more.wait()
        return self.taken


def put(inbox: Inbox) -> Callable[[bytes], None]:
    """What the library does: a call of C, from any thread."""
    callback = ctypes.cast(inbox.callback, CALLBACK)

    def call(event: bytes) -> None:
        data = ctypes.create_string_buffer(event, len(event))
        callback(ctypes.addressof(data), len(event))

    return call


async def test_what_many_threads_leave_is_taken_whole_and_in_the_order_of_each(
    inbox: Inbox,
) -> None:
    arriving = Arriving(inbox)
    call = put(inbox)

    def leave(thread: int) -> None:
        for number in range(EVENTS):
            call(_NUMBERS.pack(thread, number) + b"x" * (number % 300))

    threads = [threading.Thread(target=leave, args=(thread,)) for thread in range(THREADS)]
    for thread in threads:
        thread.start()
    taken = await arriving.until(THREADS * EVENTS)
    for thread in threads:
        thread.join()

    of_thread: dict[int, list[int]] = {}
    for event in taken:
        thread, number = _NUMBERS.unpack_from(event)
        assert event[_NUMBERS.size :] == b"x" * (number % 300)
        of_thread.setdefault(thread, []).append(number)
    assert of_thread == {thread: list(range(EVENTS)) for thread in range(THREADS)}


async def test_the_loop_is_told_again_and_again(inbox: Inbox) -> None:
    arriving = Arriving(inbox)
    call = put(inbox)
    for number in range(100):
        call(b"%d" % number)
        await arriving.until(number + 1)

    assert arriving.taken == [b"%d" % number for number in range(100)]


async def test_what_was_left_before_the_loop_looked_comes_with_what_follows(inbox: Inbox) -> None:
    call = put(inbox)
    call(b"early")
    arriving = Arriving(inbox)
    call(b"late")

    assert await arriving.until(2) == [b"early", b"late"]


async def test_an_event_without_a_byte_is_one(inbox: Inbox) -> None:
    call = put(inbox)
    for event in (b"", b"between", b""):
        call(event)

    assert inbox.take() == [b"", b"between", b""]
    assert inbox.take() == []


def test_another_loop_takes_what_comes_after_the_end_of_the_first(inbox: Inbox) -> None:
    call = put(inbox)

    async def take_one(event: bytes) -> list[bytes]:
        arriving = Arriving(inbox)
        call(event)
        return await arriving.until(1)

    assert asyncio.run(take_one(b"first")) == [b"first"]
    # The first loop is closed, and nobody has detached it.
    assert asyncio.run(take_one(b"second")) == [b"second"]


@pytest.mark.needs("cc")
def test_no_child_has_the_pipe() -> None:
    assert not os.get_inheritable(CompiledInbox()._woken)


def test_what_comes_after_the_end_of_the_loop_is_for_whoever_takes_what_is_abandoned() -> None:
    abandoned: list[bytes] = []
    late = InterpretedInbox(lambda: abandoned.extend(late.take()))
    call = put(late)

    async def attach() -> None:
        late.attach(asyncio.get_running_loop(), lambda: None)
        call(b"the loop is told, and ends before it looks")

    asyncio.run(attach())
    for event in (b"late", b"later"):
        call(event)

    assert abandoned == [b"the loop is told, and ends before it looks", b"late", b"later"]


@pytest.mark.needs("cc")
def test_the_memory_of_a_burst_is_given_back() -> None:
    inbox = CompiledInbox()
    call = put(inbox)
    burst = [bytes(1024 * 1024)] * 64
    before = _resident()
    for event in burst:
        call(event)
    full = _resident()
    assert inbox.take() == burst
    for _ in range(2):  # there are two rooms, which change places
        call(b"small")
        assert inbox.take() == [b"small"]

    assert full - before > 60 * 1024 * 1024
    assert _resident() - before < 16 * 1024 * 1024


def _resident() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("This system does not tell.")


def test_where_it_was_not_compiled_python_stands_in_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(inbox_module, "COMPILED", "gateway.rooms.native._no_such_inbox")

    assert dispatch._compiled() is None
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "it was not compiled" in record.message
    assert "make install" in record.message


def test_one_that_was_compiled_for_another_system_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "inbox_of_another_system.so").write_bytes(b"\x7fELF")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(inbox_module, "COMPILED", "inbox_of_another_system")

    with pytest.raises(NotCompiled, match="inbox_of_another_system"):
        CompiledInbox()


def test_one_that_is_something_else_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox_module, "COMPILED", "_ctypes")

    with pytest.raises(NotCompiled, match="inbox_put"):
        CompiledInbox()

"""The turns of joins, and the pauses between tries."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from gateway import joins
from gateway.errors import TooManyJoins
from gateway.joins import Backoff, JoinGate
from gateway.metrics import Metrics

DEADLINE = 5.0


async def test_no_more_than_so_many_join_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joins, "PER_SECOND", 1e6)
    gate = JoinGate(Metrics())
    running = most = 0
    release = asyncio.Event()
    full = asyncio.Event()

    async def join() -> None:
        nonlocal running, most
        async with gate.turn():
            running += 1
            most = max(most, running)
            if running == joins.IN_FLIGHT:
                full.set()
            await release.wait()
            running -= 1

    async with asyncio.timeout(DEADLINE):
        tasks = [asyncio.create_task(join()) for _ in range(3 * joins.IN_FLIGHT)]
        await full.wait()
        release.set()
        await asyncio.gather(*tasks)

    assert most == joins.IN_FLIGHT


async def test_joins_begin_no_faster_than_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joins, "PER_SECOND", 100.0)
    gate = JoinGate(Metrics())
    loop = asyncio.get_running_loop()
    begun = []
    for _ in range(5):
        async with gate.turn():
            begun.append(loop.time())

    assert begun[-1] - begun[0] >= 0.039


async def test_too_many_that_wait_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joins, "IN_FLIGHT", 1)
    monkeypatch.setattr(joins, "WAITING", 1)
    gate = JoinGate(Metrics())
    async with AsyncExitStack() as held:
        await held.enter_async_context(gate.turn())
        waiting = asyncio.create_task(held.enter_async_context(gate.turn()))
        await asyncio.sleep(0)
        with pytest.raises(TooManyJoins):
            await gate.turn().__aenter__()
        waiting.cancel()
        await asyncio.wait({waiting})


async def test_a_turn_that_does_not_come_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joins, "IN_FLIGHT", 1)
    monkeypatch.setattr(joins, "TURN_TIMEOUT", 0.01)
    gate = JoinGate(Metrics())
    async with gate.turn():
        with pytest.raises(TooManyJoins):
            await gate.turn().__aenter__()
    async with gate.turn():  # who gave up has left no trace
        pass


def test_pauses_grow_to_their_bound_and_begin_again() -> None:
    backoff = Backoff(1.0, 4.0)
    pauses = [backoff.next() for _ in range(5)]
    backoff.reset()

    for pause, full in zip(pauses, (1.0, 2.0, 4.0, 4.0, 4.0), strict=True):
        assert 0.75 * full <= pause <= full
    assert backoff.next() <= 1.0

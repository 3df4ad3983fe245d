"""When to join: not too many at once, not too often, and after a failure later each time."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from gateway.errors import Draining, GatewayError, TooManyJoins
from gateway.metrics import JOINED, Metrics

IN_FLIGHT = 8
"""Joins at once: each takes 100 to 175 file descriptors and some 50 ms of a core while it lasts."""

PER_SECOND = 40.0
"""Joins begun in a second, so that a storm of them leaves the process time for everybody else."""

WAITING = 300
"""Joins that wait for their turn: as many as a process has connections, all back after a restart."""

TURN_TIMEOUT = 15.0
"""Seconds that a join waits for its turn; 300 take about ten."""

FIRST_DELAY = 0.25
"""Seconds before the first new try."""

LAST_DELAY = 2.0
"""Seconds between tries at most: a server that is back is found within it."""


class JoinGate:
    """Gives joins their turn, for the whole process."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._places = asyncio.Semaphore(IN_FLIGHT)
        self._waiting = 0
        self._next_at = 0.0
        self._closed = False

    @property
    def waiting(self) -> int:
        """Joins that wait for their turn."""
        return self._waiting

    def close(self) -> None:
        """Nobody joins any more, however long they have waited."""
        self._closed = True

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Raises Draining, or TooManyJoins where too many wait, or the turn does not come in time."""
        if self._waiting >= WAITING:
            raise self._too_many("Too many joins of LiveKit rooms wait for their turn.")
        self._waiting += 1
        try:
            async with asyncio.timeout(TURN_TIMEOUT):
                await self._places.acquire()
        except TimeoutError:
            raise self._too_many(
                "The turn to join the LiveKit room did not come in time."
            ) from None
        finally:
            self._waiting -= 1
        try:
            if self._closed:
                raise Draining("The gateway is going away; come back in a moment.")
            now = asyncio.get_running_loop().time()
            begins = self._next_at = max(now, self._next_at + 1 / PER_SECOND)
            await asyncio.sleep(begins - now)
            yield
        finally:
            self._places.release()

    @contextmanager
    def counted(self) -> Iterator[None]:
        """One join, once it is its turn: how it ends is counted, and how long it takes."""
        begun = time.monotonic()
        try:
            yield
        except GatewayError as error:
            self._metrics.joins[error.code] += 1
            raise
        self._metrics.joins[JOINED] += 1
        self._metrics.join_duration.observe(time.monotonic() - begun)

    def _too_many(self, detail: str) -> TooManyJoins:
        self._metrics.joins[TooManyJoins.code] += 1
        return TooManyJoins(detail)


class Backoff:
    """The pauses between tries: doubled up to a bound, and no two processes in step."""

    def __init__(self, first: float = FIRST_DELAY, last: float = LAST_DELAY) -> None:
        self._first = self._delay = first
        self._last = last

    def reset(self) -> None:
        self._delay = self._first

    def next(self) -> float:
        """Seconds until the next try."""
        delay = self._delay * random.uniform(0.75, 1.0)  # noqa: S311 - spreads load, guards nothing
        self._delay = min(2 * self._delay, self._last)
        return delay

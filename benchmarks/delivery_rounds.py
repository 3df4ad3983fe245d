"""A server with its readers and who publishes, the rounds that are measured on it, and their tables."""

import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TypeVar

from benchmarks import machine
from benchmarks.load_client import Published, Publisher, Readers, Taken, publishing, reading
from benchmarks.memory_gateway import Setup
from benchmarks.servers import (
    NotAvailable,
    Server,
    bare_sse,
    gateway_tokens,
    memory_gateway,
    mercure,
    nchan,
)

T = TypeVar("T")

READERS = 1_000

WARM_UP_RATE = 50
WARM_UP_EVENTS = 25

ARRIVAL_SECONDS = 10.0
"""What has not arrived so long after the last event was due is not waited for."""

BROKEN_P99 = 100.0
"""Milliseconds; beyond, or when something is lost, a rate is more than a server takes."""

HOPELESS_P99 = 1_000.0
"""Beyond, the next rate is not tried."""

CPU_BOUND = 0.9
"""Of a core: readers that use so much may be what limits a rate."""


@dataclass(frozen=True, slots=True)
class Round:
    rate: float
    events: int
    taken: Taken
    published: Published
    server_cpu: float
    """Seconds."""
    load_cpu: dict[str, float]
    """Likewise, of readers and publisher."""
    span: float
    memory: float = 0.0
    """MB that the server held at most beyond what it had before."""

    @property
    def deliveries(self) -> float:
        """A second."""
        return self.taken.received / self.taken.seconds if self.taken.seconds else 0.0


@dataclass(slots=True)
class Way:
    """A server, its readers, and who publishes."""

    server: Server
    readers: Readers
    publisher: Publisher
    count: int
    """Of readers."""
    number: int = 0
    """Of the next event."""

    async def round(self, rate: float, events: int) -> Round:
        load = {"readers": self.readers.pid, "publisher": self.publisher.pid}
        started, cpu, load_cpu = time.monotonic(), self.server.cpu(), machine.cpu_seconds(load)
        await self.readers.begin(self.number, events)
        async with machine.growing(max(self.server.pids.values())) as growth:
            published = await self.publisher.publish(rate, events, self.number)
            taken = await self.readers.take(ARRIVAL_SECONDS)
        span = time.monotonic() - started
        used = machine.cpu_seconds(load)
        self.number += events
        measured = Round(
            rate,
            events,
            taken,
            published,
            self.server.cpu() - cpu,
            {name: used[name] - load_cpu[name] for name in used},
            span,
            growth.most / 1e6,
        )
        if taken.lost:
            # Who was dropped is back, and what a server still had for the others is gone.
            await self.readers.open(self.count)
        return measured


@asynccontextmanager
async def way_of(
    load: Path, server: Server, count: int, tokens: Sequence[str] = ("none",)
) -> AsyncIterator[Way]:
    assert server.target is not None
    async with (
        reading(load, server.place(tokens)) as readers,
        publishing(load, server.target) as publisher,
    ):
        await readers.open(count)
        way = Way(server, readers, publisher, count)
        await way.round(WARM_UP_RATE, -(-WARM_UP_EVENTS // server.topics) * server.topics)
        yield way


@asynccontextmanager
async def gateway_way(load: Path, count: int, setup: Setup | None = None) -> AsyncIterator[Way]:
    async with (
        memory_gateway(setup or Setup()) as server,
        way_of(load, server, count, gateway_tokens(count)) as way,
    ):
        yield way


@asynccontextmanager
async def all_ways(
    load: Path, rivals: Sequence[str]
) -> AsyncIterator[tuple[dict[str, Way], dict[str, str]]]:
    """The gateway's and the others', and why some are not there."""
    async with AsyncExitStack() as stack:
        ways = {"gateway": await stack.enter_async_context(gateway_way(load, READERS))}
        missing: dict[str, str] = {}
        for name in rivals:
            try:
                server = stack.enter_context(RIVALS[name]())
            except NotAvailable as error:
                missing[name] = str(error)
            else:
                ways[name] = await stack.enter_async_context(way_of(load, server, READERS))
        yield ways, missing


RIVALS: Mapping[str, Callable[[], AbstractContextManager[Server]]] = {
    "nchan": nchan,
    "Mercure": mercure,
    "sse-starlette": bare_sse,
}


ROUND_HEADER = (
    "server",
    "events/s",
    "deliveries/s",
    "p50 ms",
    "p99 ms",
    "slowest ms",
    "lost",
    "server us a delivery",
    "server of a core",
    "readers of a core",
    "published late, p99 ms",
)


def round_row(name: str, rate: float, rounds: Sequence[Round]) -> tuple[str, ...]:
    return (
        name,
        f"{rate:,}",
        f"{deliveries(rounds):,.0f}",
        f"{median(each.taken.p50 for each in rounds):.1f}",
        f"{p99(rounds):.1f}",
        f"{max(each.taken.slowest for each in rounds):.1f}",
        lost(rounds),
        f"{cpu(rounds):.2f}",
        f"{median(each.server_cpu / each.span for each in rounds):.0%}",
        f"{readers_share(rounds):.0%}",
        f"{median(each.published.late for each in rounds):.1f}",
    )


def missing_row(name: str, reason: str, width: int) -> tuple[str, ...]:
    return (f"{name}: {reason}", *["-"] * (width - 1))


def remark(rounds: Mapping[tuple[str, float], Sequence[Round]]) -> str:
    """Where the load, and not what it measures, may have been the limit; and what must never be."""
    bound = [
        f"{name} at {rate:,}"
        for (name, rate), each in rounds.items()
        if readers_share(each) >= CPU_BOUND
    ]
    doubled = sum(each.taken.doubled for measured in rounds.values() for each in measured)
    disordered = {
        name: sum(
            each.taken.disordered
            for (other, _), measured in rounds.items()
            if other == name
            for each in measured
        )
        for name, _ in rounds
    }
    limit = (
        f"The readers' process used {CPU_BOUND:.0%} of a core or more, and may be what was the limit: {'; '.join(bound)}."
        if bound
        else f"The readers' process never used {CPU_BOUND:.0%} of a core, so it was not the limit."
    )
    order = ", ".join(f"{name} {count:,}" for name, count in disordered.items())
    return f"{limit} Events that came twice: {doubled}; behind a later one: {order}."


def turned(names: list[T], number: int) -> list[T]:
    turn = number % len(names)
    return names[turn:] + names[:turn]


def broken(rounds: Sequence[Round]) -> bool:
    return lost_any(rounds) or p99(rounds) > BROKEN_P99


def lost_any(rounds: Sequence[Round]) -> bool:
    return any(each.taken.lost for each in rounds)


def deliveries(rounds: Sequence[Round]) -> float:
    return median(each.deliveries for each in rounds)


def p99(rounds: Sequence[Round]) -> float:
    return median(each.taken.p99 for each in rounds)


def cpu(rounds: Sequence[Round]) -> float:
    """Microseconds of processor time for a delivery."""
    return median(each.server_cpu / max(each.taken.received, 1) * 1e6 for each in rounds)


def readers_share(rounds: Sequence[Round]) -> float:
    return median(each.load_cpu["readers"] / each.span for each in rounds)


def lost(rounds: Sequence[Round]) -> str:
    lost = sum(each.taken.lost for each in rounds)
    return f"{lost:,} of {sum(each.taken.expected for each in rounds):,}" if lost else "none"

"""`python -m benchmarks.open_rooms`: what rooms cost that are open in one process, ours beside the SDK's.

Each way has a process of its own for its connections, and a sender in another. Both are there at once
and are measured in turns, so that they share the waits and whatever else the machine does.
"""

import asyncio
import sys
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from statistics import median

from benchmarks.runner import markdown, run
from benchmarks.stage import Stage, Worker, report, working

WAYS = {"gateway": "gateway_connections", "SDK": "sdk_connections"}

IDLE_ROOMS = 80
IDLE_REPEATS = 2

SETTLED = 30.0
"""Seconds after a join until a connection costs what it will cost from then on."""

IDLE_SPAN = 10.0

OPEN = (1, 10, 50, 200)

ROUNDS = 3

ROUND_IDLE_SPAN = 5.0

TEXTS = {
    "gateway": {1: 1_000, 10: 1_000, 50: 1_000, 200: 1_000},
    "SDK": {1: 1_000, 10: 1_000, 50: 500, 200: 300},
}
"""A round by the SDK takes longer with every room that is open."""

PAUSE = 0.001
"""Seconds between two texts: no more arrive than either way can take with few rooms."""

ARRIVAL_SECONDS = 20.0

BATCH = 20
"""Joins that a worker makes before it answers."""

MOST_NEW = 80
"""Connections of one process that may be new at once: each takes some 150 file descriptors, and gives
most of them back when it is settled."""

RUN_SECONDS = 540.0
"""It takes about 470."""


@dataclass(frozen=True, slots=True)
class Idle:
    """What one room costs."""

    early: float
    """Milliseconds of processor time a second, in the first ten seconds."""
    settled: float
    early_memory: float
    """MB, right after the joins."""
    settled_memory: float


async def measure(stage: Stage) -> str:
    idle: dict[str, list[Idle]] = {way: [] for way in WAYS}
    for number in range(IDLE_REPEATS):
        report(f"Idle rooms, {number + 1} of {IDLE_REPEATS}")
        # Each is first as often as the other: the first is alone when its rooms are new.
        order = sorted(WAYS, reverse=bool(number % 2))
        for way, figures in (await _idle(stage, f"idle-{number}", order)).items():
            idle[way].append(figures)
    events = await _events(stage)
    return f"{_idle_table(idle)}\n\n{_event_table(events)}"


async def _idle(stage: Stage, name: str, order: list[str]) -> dict[str, Idle]:
    async with AsyncExitStack() as stack:
        workers = await _workers(stack, stage, name, order)
        before: dict[str, float] = {}
        early: dict[str, tuple[float, float]] = {}
        for way in order:
            # The first connection brings what is there once: the library and its threads.
            await workers[way].do("open", 1)
            before[way] = await workers[way].do("memory")
            await _open(workers[way], IDLE_ROOMS + 1)
            memory = await workers[way].do("memory")
            (cpu,) = (await _idle_cpu({way: workers[way]})).values()
            early[way] = (cpu / IDLE_ROOMS, (memory - before[way]) / IDLE_ROOMS)
        await asyncio.sleep(SETTLED - IDLE_SPAN)
        settled = await _idle_cpu(workers)
        return {
            way: Idle(
                early=early[way][0] * 1e3,
                settled=settled[way] / (IDLE_ROOMS + 1) * 1e3,
                early_memory=early[way][1] / 1e6,
                settled_memory=(await workers[way].do("memory") - before[way]) / IDLE_ROOMS / 1e6,
            )
            for way in order
        }


async def _events(stage: Stage) -> dict[tuple[str, int], float]:
    """Microseconds of processor time for each text that is received, by way and by rooms that are open."""
    async with AsyncExitStack() as stack:
        workers = await _workers(stack, stage, "events", list(WAYS))
        senders: dict[str, Worker] = {}
        costs: dict[tuple[str, int], float] = {}
        for already, rooms in zip((0, *OPEN), OPEN, strict=False):
            report(f"Events with {rooms} rooms open")
            await _open_in_steps(workers, already, rooms)
            if not senders:
                for way in WAYS:
                    place = stage.place(f"events-{way}-0", "sender")
                    senders[way] = await stack.enter_async_context(working("sdk_sender", place))
                    await senders[way].do("until_heard", 1)
            measured: dict[str, list[float]] = {way: [] for way in WAYS}
            for number in range(ROUNDS):
                # Anew each time: by the SDK, many rooms take minutes to come to rest.
                idle = await _idle_cpu(workers, ROUND_IDLE_SPAN)
                for way in sorted(WAYS, reverse=bool(number % 2)):
                    count = TEXTS[way][rooms]
                    cost = await _received(workers[way], senders[way], count, idle[way])
                    measured[way].append(cost)
            costs |= {(way, rooms): median(measured[way]) for way in WAYS}
        return costs


async def _received(worker: Worker, sender: Worker, count: int, idle: float) -> float:
    started, before = time.monotonic(), await worker.do("cpu")
    await sender.do("one_by_one", count, PAUSE)
    arrived = await worker.do("take", count, ARRIVAL_SECONDS)
    used = await worker.do("cpu") - before - idle * (time.monotonic() - started)
    return float(used / max(arrived, 1) * 1e6)


async def _workers(
    stack: AsyncExitStack, stage: Stage, name: str, order: list[str]
) -> dict[str, Worker]:
    return {
        way: await stack.enter_async_context(
            working(WAYS[way], stage.place(f"{name}-{way}", "unused"))
        )
        for way in order
    }


async def _open(worker: Worker, count: int) -> None:
    for until in (*range(BATCH, count, BATCH), count):
        await worker.do("open", until)


async def _open_in_steps(workers: Mapping[str, Worker], already: int, count: int) -> None:
    for until in (*range(already + MOST_NEW, count, MOST_NEW), count):
        for worker in workers.values():
            await _open(worker, until)
        await asyncio.sleep(SETTLED)


async def _idle_cpu(workers: Mapping[str, Worker], span: float = IDLE_SPAN) -> dict[str, float]:
    """Processor seconds a second of each, over the same span."""
    before = {way: await worker.do("cpu") for way, worker in workers.items()}
    started = time.monotonic()
    await asyncio.sleep(span)
    return {
        way: (await worker.do("cpu") - before[way]) / (time.monotonic() - started)
        for way, worker in workers.items()
    }


def _idle_table(idle: Mapping[str, list[Idle]]) -> str:
    lines = (
        ("processor in the first 10 s, ms/s", "early", 0.2),
        ("processor settled, ms/s", "settled", 0.4),
        ("memory after the joins, MB", "early_memory", 0.4),
        ("memory settled, MB", "settled_memory", 0.7),
    )
    rows = []
    for title, name, goal in lines:
        ours, sdk = (median(getattr(each, name) for each in idle[way]) for way in WAYS)
        rows.append((title, f"{ours:.2f}", f"{sdk:.2f}", f"{ours / sdk:.2f}", f"{goal:g}"))
    return (
        f"What each of {IDLE_ROOMS} rooms costs in which nothing happens (median of {IDLE_REPEATS};"
        f" settled: {SETTLED:g} s after the joins):\n\n"
        + markdown(("of one room", "gateway's", "SDK", "ratio", "goal"), rows)
    )


def _event_table(costs: Mapping[tuple[str, int], float]) -> str:
    rows = [
        (
            str(rooms),
            f"{costs['gateway', rooms]:,.0f}",
            f"{costs['gateway', rooms] / costs['gateway', OPEN[0]]:.2f}",
            f"{costs['SDK', rooms]:,.0f}",
            f"{costs['SDK', rooms] / costs['SDK', OPEN[0]]:.2f}",
        )
        for rooms in OPEN
    ]
    header = ("rooms open", "gateway's, us", "to its own at 1", "SDK, us", "to its own at 1")
    return (
        "Processor time for each text that is received in one of them (three native events), beyond what"
        f" the rooms cost idle; median of {ROUNDS} rounds; goal: within 20 % of that at 1:\n\n"
        + markdown(header, rows)
    )


if __name__ == "__main__":
    sys.exit(run(measure, within=RUN_SECONDS, gateway=False))

"""`python -m benchmarks.delivery`: how events reach many readers, beside nchan, Mercure and sse-starlette.

Who publishes, what delivers and who reads are processes of their own. Names of sections as arguments
measure those alone.
"""

import asyncio
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks import machine
from benchmarks.delivery_rounds import (
    BROKEN_P99,
    HOPELESS_P99,
    READERS,
    RIVALS,
    ROUND_HEADER,
    WARM_UP_EVENTS,
    WARM_UP_RATE,
    Round,
    Way,
    all_ways,
    broken,
    cpu,
    deliveries,
    gateway_way,
    lost,
    lost_any,
    missing_row,
    p99,
    remark,
    round_row,
    turned,
)
from benchmarks.load_client import (
    Published,
    Publisher,
    build_load,
    reading,
)
from benchmarks.memory_gateway import Setup
from benchmarks.runner import markdown, run_alone
from benchmarks.senders import TOPIC
from benchmarks.servers import (
    NotAvailable,
    Server,
    gateway_path,
    gateway_tokens,
    memory_gateway,
)
from benchmarks.stage import Worker, report, staged, working
from benchmarks.texts import TEXT_BYTES

ROUNDS = 3

SPAN = 2.5
"""Seconds of publishing in a round."""

MANY_RATES = (1_000, 3_000, 5_000)
"""Events a second to all readers, that the gateway is to deliver."""

NCHAN_RATES = (50, 100, 200, 400)
"""Events a second, stepped up until something is lost: above the rate that it takes, it may deliver more."""

LIVEKIT_RATES = (50, 100, 200, 400, 800)

FEW_RATES = (20, 50, 100, 200)

GOAL_P99 = 20.0
GOAL_DELIVERIES = 2_500_000
GOAL_TO_NCHAN = 10.0
GOAL_P99_BEYOND = 5.0
GOAL_CPU_TO_NCHAN = 1.4
GOAL_IDLE_KB = 12.0
GOAL_HEARTBEATS = 0.01
GOAL_FLAT = 0.2
GOAL_STALLED = 0.25

IDLE = 10_000
IDLE_BEFORE = 100
"""Readers that are there before, so that what is there once is not counted."""
IDLE_SETTLED = 2.0
HEARTBEAT_SPAN = 15.0
"""The interval of the gateway's heartbeats: each connection has one in it."""

TOPICS = (1, 20, 200)
READERS_OF_TOPIC = 5
"""So that each event has as many deliveries, however many topics there are."""

LOGS = (100, 100_000)
LOG_READERS = 100

COST_RATE = 200
"""The shortest log is then that of half a second: its readers are not dropped by a busy machine."""
COST_EVENTS = 800
"""A multiple of every number of topics; 10 ms of the kernel's clock are then some 12 us an event."""

RESUMES = 200
RESUMED = 10
"""Events behind the newest, where a resume begins."""

STALLED = 100
STALLED_RATES = (200, 1_000)

LIVEKIT_ROOM = "delivery"
LIVEKIT_SETTLED = 30
"""Tries until the room is received."""

RUN_SECONDS = 720.0
"""It takes about 600; what is not done by then is missing."""

AFTERWARDS_SECONDS = 30.0
"""For what has to be ended."""


# Many readers of one topic


async def many(load: Path) -> str:
    rounds: dict[tuple[str, float], list[Round]] = {}
    async with all_ways(load, ["nchan"]) as (ways, missing):
        for number in range(ROUNDS):
            report(f"Many events, round {number + 1} of {ROUNDS}")
            for rate in MANY_RATES:
                measured = await ways["gateway"].round(rate, int(rate * SPAN))
                rounds.setdefault(("gateway", rate), []).append(measured)
            for rate in NCHAN_RATES if "nchan" in ways else ():
                measured = await ways["nchan"].round(rate, int(rate * SPAN))
                rounds.setdefault(("nchan", rate), []).append(measured)
                if measured.taken.lost:
                    break
    lines = [round_row(*key, rounds[key]) for key in rounds]
    lines += [missing_row(name, reason, len(ROUND_HEADER)) for name, reason in missing.items()]
    own_best = max(deliveries(rounds["gateway", rate]) for rate in MANY_RATES)
    first, second, *_ = (rounds["gateway", rate] for rate in MANY_RATES)
    verdicts = [
        f"- {MANY_RATES[0]:,} events a second: {lost(first)} lost, p99 {p99(first):.1f} ms (goal: none,"
        f" under {GOAL_P99:g} ms)",
        f"- {MANY_RATES[1]:,} events a second: {deliveries(second):,.0f} deliveries a second (goal:"
        f" {GOAL_DELIVERIES:,})",
    ]
    if nchan_rounds := {key[1]: each for key, each in rounds.items() if key[0] == "nchan"}:
        best = max(deliveries(each) for each in nchan_rounds.values())
        held = [rate for rate, each in nchan_rounds.items() if not broken(each)]
        verdicts.append(
            f"- nchan: {best:,.0f} deliveries a second at best, and"
            f" {max(held, default=0):,} events a second with a p99 of {BROKEN_P99:g} ms at most; the"
            f" gateway's best to nchan's: {own_best / best:.1f} (goal: {GOAL_TO_NCHAN:g})"
        )
    return "\n\n".join(
        (
            f"### Many events\n\nEvents of {TEXT_BYTES} bytes to {READERS:,} readers of one topic, appended"
            f" at the log; for nchan, by POST, with the rate stepped up until something is"
            f" lost (median of {ROUNDS} rounds of {SPAN:g} s):",
            markdown(ROUND_HEADER, lines),
            "\n".join(verdicts),
            remark(rounds),
        )
    )


# Few events a second


async def few(load: Path) -> str:
    rounds: dict[tuple[str, float], list[Round]] = {}
    async with all_ways(load, ["nchan", "Mercure"]) as (ways, missing):
        for rate in FEW_RATES:
            report(f"{rate} events a second")
            for number in range(ROUNDS):
                # Each is first as often as the others (nearly).
                for name in turned(list(ways), number):
                    measured = await ways[name].round(rate, int(rate * SPAN))
                    rounds.setdefault((name, rate), []).append(measured)
    lines, verdicts = [], []
    for rate in FEW_RATES:
        lines += [round_row(name, rate, rounds[name, rate]) for name in ways]
        if "nchan" in ways:
            own, rival = rounds["gateway", rate], rounds["nchan", rate]
            verdicts.append(
                f"- {rate} events a second: p99 {p99(own) - p99(rival):+.1f} ms to nchan's (goal: at most"
                f" {GOAL_P99_BEYOND:+g}), processor time {cpu(own) / cpu(rival):.2f} times nchan's (goal:"
                f" at most {GOAL_CPU_TO_NCHAN:g}){'; more than nchan takes' if broken(rival) else ''}"
            )
    lines += [missing_row(name, reason, len(ROUND_HEADER)) for name, reason in missing.items()]
    return "\n\n".join(
        (
            f"### Few events\n\nThe same {READERS:,} readers at rates that everybody may take, in turns"
            f" (median of {ROUNDS} rounds of {SPAN:g} s):",
            markdown(ROUND_HEADER, lines),
            "\n".join(verdicts),
            remark(rounds),
        )
    )


# Through LiveKit


async def livekit(load: Path) -> str:
    rounds: dict[tuple[str, float], list[Round]] = {}
    with staged() as stage:
        report("Through LiveKit")
        path = gateway_path(TOPIC, LIVEKIT_ROOM)
        server = Server(
            "gateway", stage.gateway_port, path, '"text":"', {"gateway": stage.pids["gateway"]}
        )
        tokens = gateway_tokens(READERS, LIVEKIT_ROOM)
        async with (
            working("sdk_sender", stage.place(LIVEKIT_ROOM, "author")) as sender,
            reading(load, server.place(tokens)) as readers,
        ):
            await readers.open(READERS)
            publisher = SdkPublisher(sender)
            way = Way(server, readers, publisher, READERS)
            await _until_received(way)
            for rate in LIVEKIT_RATES:
                rounds["gateway, LiveKit", rate] = measured = []
                for _ in range(ROUNDS):
                    way.number = 0  # as the sender counts
                    measured.append(await way.round(rate, int(rate * SPAN)))
                if lost_any(measured) or p99(measured) > HOPELESS_P99:
                    break
    held = [rate for (_, rate), each in rounds.items() if not broken(each)]
    return "\n\n".join(
        (
            f"### Through LiveKit\n\nThe pieces of one streamed text, by an SDK sender, to {READERS:,} readers"
            f" of the gateway; stepped up until the p99 is over {HOPELESS_P99:g} ms or something is lost"
            f" (median of {ROUNDS} rounds of {SPAN:g} s):",
            markdown(ROUND_HEADER, [round_row(*key, rounds[key]) for key in rounds]),
            f"- with a p99 of {BROKEN_P99:g} ms at most: {max(held, default=0):,} events a second",
            remark(rounds),
        )
    )


class SdkPublisher(Publisher):
    """Streams a text into the room by the SDK; each piece says when it was written, not when it was due."""

    def __init__(self, worker: Worker) -> None:
        super().__init__(worker)
        self._sender = worker

    async def publish(self, rate: float, count: int, first: int) -> Published:
        taken = await self._sender.do("piecewise", count, 1 / rate)
        return Published(count, max(0.0, taken - count / rate) * 1e3)


async def _until_received(way: Way) -> None:
    for _ in range(LIVEKIT_SETTLED):
        way.number = 0
        if not (await way.round(WARM_UP_RATE, WARM_UP_EVENTS)).taken.lost:
            return
    raise TimeoutError


# Idle connections


@dataclass(frozen=True, slots=True)
class Idle:
    memory: float
    """Bytes of one connection."""
    heartbeats: float | None = None
    """Of one core."""


async def idle(load: Path) -> str:
    measured: dict[str, list[Idle]] = {}
    missing: dict[str, str] = {}
    if machine.most_files() < IDLE + 2 * IDLE_BEFORE:
        return f"### Idle connections\n\nNot measured: a process may have {machine.most_files():,} files."
    tokens = {
        "gateway, a token each": gateway_tokens(IDLE),
        "gateway, one token": gateway_tokens(1),
    }
    for number in range(ROUNDS):
        for name, given in tokens.items():
            report(f"Idle connections: {name}, round {number + 1} of {ROUNDS}")
            async with memory_gateway(Setup()) as server:
                # A heartbeat costs the same, whatever token its reader came with.
                span = HEARTBEAT_SPAN if len(given) == IDLE else 0.0
                figures = await _idle(load, server, given, span)
                measured.setdefault(name, []).append(figures)
        for name, starting in RIVALS.items():
            try:
                with starting() as server:
                    report(f"Idle connections: {name}, round {number + 1} of {ROUNDS}")
                    measured.setdefault(name, []).append(await _idle(load, server, ("none" * 80,)))
            except NotAvailable as error:
                missing[name] = str(error)
    lines = [_idle_row(name, each) for name, each in measured.items()]
    lines += [missing_row(name, reason, 3) for name, reason in missing.items()]
    return "\n\n".join(
        (
            f"### Idle connections\n\n{IDLE:,} event streams of one topic, opened with the headers of a"
            f" browser, on which nothing happens but heartbeats (median of {ROUNDS}; goal: at most"
            f" {GOAL_IDLE_KB:g} KB, and {GOAL_HEARTBEATS:.0%} of a core):",
            markdown(("server", "KB a connection", "processor for heartbeats"), lines),
        )
    )


async def _idle(load: Path, server: Server, tokens: Sequence[str], span: float = 0.0) -> Idle:
    place = server.place(tokens)
    async with reading(load, place) as few_readers, reading(load, place) as readers:
        await few_readers.open(IDLE_BEFORE)
        await asyncio.sleep(IDLE_SETTLED)
        before = server.memory()
        await readers.open(IDLE)
        await asyncio.sleep(IDLE_SETTLED)
        memory = (server.memory() - before) / IDLE
        if not span:
            return Idle(memory)
        cpu, started = server.cpu(), time.monotonic()
        await asyncio.sleep(span)
        heartbeats = (server.cpu() - cpu) / (time.monotonic() - started)
        assert await readers.alive() == IDLE
        return Idle(memory, heartbeats)


def _idle_row(name: str, measured: Sequence[Idle]) -> tuple[str, ...]:
    heartbeats = [each.heartbeats for each in measured if each.heartbeats is not None]
    return (
        name,
        f"{median(each.memory for each in measured) / 1024:.1f}",
        f"{median(heartbeats):.2%} of a core" if heartbeats else "-",
    )


# What an event costs


async def cost(load: Path) -> str:
    by_topics: dict[int, list[Round]] = {topics: [] for topics in TOPICS}
    by_log: dict[int, list[Round]] = {events: [] for events in LOGS}
    resumes: dict[int, list[float]] = {events: [] for events in LOGS}
    async with AsyncExitStack() as stack:
        report("Cost of an event, by topics")
        ways = {
            topics: await stack.enter_async_context(
                gateway_way(load, topics * READERS_OF_TOPIC, Setup(topics=topics))
            )
            for topics in TOPICS
        }
        await _take_turns(ways, by_topics)
    async with AsyncExitStack() as stack:
        report("Cost of an event, by the log's length")
        ways = {}
        for events in LOGS:
            setup = Setup(log_events=events)
            ways[events] = await stack.enter_async_context(gateway_way(load, 1, setup))
            control = ways[events].server.control
            assert control is not None
            # In the log's own time: readers would be dropped, so they come when it is full.
            await control.do("fill", events + events // 10)
            ways[events].count = LOG_READERS
            await ways[events].readers.open(LOG_READERS)
        await _take_turns(ways, by_log)
        report("Resumes")
        for _ in range(ROUNDS):
            for events, way in ways.items():
                resumes[events] += await _resumes(load, way.server)
    lines = [
        *_cost_rows("topics", by_topics),
        *_cost_rows("events kept", by_log),
    ]
    resumed = [
        (f"{events:,}", f"{median(waits):.2f}", f"{sorted(waits)[len(waits) * 99 // 100]:.2f}")
        for events, waits in resumes.items()
    ]
    return "\n\n".join(
        (
            f"### What an event costs\n\nProcessor time of the gateway for an event, {COST_RATE} a second;"
            f" {READERS_OF_TOPIC} readers of each topic, or {LOG_READERS} of one topic with a log that is full"
            f" (median of {ROUNDS} rounds of {COST_EVENTS:,}; goal: within {GOAL_FLAT:.0%} of the first):",
            markdown(("there are", "us an event", "to the first", "p99 ms", "lost"), lines),
            f"A resume, {RESUMED} events behind the newest in a full log, from the opening of a connection"
            f" until the first event ({ROUNDS} rounds of {RESUMES}):",
            markdown(("events kept in the log", "p50 ms", "p99 ms"), resumed),
        )
    )


async def _take_turns(ways: Mapping[int, Way], measured: Mapping[int, list[Round]]) -> None:
    for number in range(ROUNDS):
        for key in turned(list(ways), number):
            measured[key].append(await ways[key].round(COST_RATE, COST_EVENTS))


async def _resumes(load: Path, server: Server) -> Sequence[float]:
    assert server.control is not None
    epoch, head = await server.control.do("head")
    more = f"Last-Event-ID: {epoch}-{head - RESUMED}\r\n"
    async with reading(load, server.place(gateway_tokens(1), more)) as readers:
        return await readers.resume(RESUMES)


def _cost_rows(what: str, measured: Mapping[int, Sequence[Round]]) -> list[tuple[str, ...]]:
    costs = {
        key: median(each.server_cpu / each.events * 1e6 for each in rounds)
        for key, rounds in measured.items()
    }
    first = next(iter(costs.values()))
    return [
        (
            f"{what}: {key:,}",
            f"{costs[key]:,.0f}",
            f"{costs[key] / first:.2f}" if first else "-",
            f"{p99(rounds):.1f}",
            lost(rounds),
        )
        for key, rounds in measured.items()
    ]


# Readers that do not read


async def stalled(load: Path) -> str:
    rounds: dict[tuple[str, float], list[Round]] = {}
    async with gateway_way(load, READERS) as way:
        for rate in STALLED_RATES:
            for number in range(ROUNDS):
                report(f"Stalled readers, {rate} events a second, round {number + 1} of {ROUNDS}")
                for standing in turned([0, STALLED], number):
                    await way.readers.open(READERS - STALLED + standing, standing)
                    measured = await way.round(rate, int(rate * SPAN))
                    name = f"{READERS - STALLED} readers, {standing} stalled beside them"
                    rounds.setdefault((name, rate), []).append(measured)
    lines, verdicts = [], []
    for rate in STALLED_RATES:
        without, beside = (
            rounds[f"{READERS - STALLED} readers, {standing} stalled beside them", rate]
            for standing in (0, STALLED)
        )
        lines += [
            (*round_row(*key, rounds[key]), f"{median(each.memory for each in rounds[key]):.1f}")
            for key in rounds
            if key[1] == rate
        ]
        verdicts.append(
            f"- {rate} events a second: p99 {p99(beside) / p99(without) - 1:+.0%} with stalled readers"
            f" (goal: at most {GOAL_STALLED:+.0%})"
        )
    return "\n\n".join(
        (
            f"### Stalled readers\n\nThe figures are those of the readers that read; memory is the most that the"
            f" gateway held beyond what it had before the round (median of {ROUNDS} rounds of {SPAN:g} s):",
            markdown((*ROUND_HEADER, "memory +MB"), lines),
            "\n".join(verdicts),
            remark(rounds),
        )
    )


SECTIONS: Mapping[str, Callable[[Path], Awaitable[str]]] = {
    "many": many,
    "few": few,
    "livekit": livekit,
    "idle": idle,
    "cost": cost,
    "stalled": stalled,
}


async def measure(names: Sequence[str]) -> str:
    parts: list[str] = []
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        load = build_load(Path(folder))
        deadline = asyncio.get_running_loop().time() + RUN_SECONDS
        for name in names:
            try:
                async with asyncio.timeout_at(deadline):
                    part = await SECTIONS[name](load)
            except TimeoutError:
                part = f"### {name}\n\nNot done by the end of {RUN_SECONDS:g} s."
            parts.append(part)
    return "\n\n".join(parts)


def main(names: Sequence[str]) -> int:
    if unknown := set(names) - set(SECTIONS):
        report(f"No section is called {', '.join(unknown)}; there are {', '.join(SECTIONS)}.")
        return 2
    chosen = names or tuple(SECTIONS)
    return run_alone(lambda: measure(chosen), within=RUN_SECONDS + AFTERWARDS_SECONDS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

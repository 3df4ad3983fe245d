"""A way through a room, from a sender to a receiver, and the rounds that are measured on it."""

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from statistics import median

from benchmarks import machine
from benchmarks.runner import markdown
from benchmarks.stage import Stage, Worker, working

ARRIVAL_SECONDS = 5.0
"""What has not arrived so long after the last text was accepted is lost."""


@dataclass(frozen=True, slots=True)
class Round:
    """What one round of one way measured."""

    sent: int
    seconds: float
    latencies: list[int]
    """Microseconds, of those that arrived."""
    cpu: dict[str, float]
    """Processor seconds that each process used, within `span`."""
    span: float
    """Seconds until the last text had arrived."""

    @property
    def rate(self) -> float:
        return self.sent / self.seconds

    def percentile(self, percent: int) -> float:
        """In milliseconds."""
        return percentile(self.latencies, percent)


@dataclass(frozen=True, slots=True)
class Way:
    """One way through: a sender, a receiver, and the processes in between."""

    sender: Worker
    receiver: Worker
    pids: dict[str, int]

    async def round(self, command: str, count: int, argument: float) -> Round:
        started = time.monotonic()
        before = machine.cpu_seconds(self.pids)
        seconds = await self.sender.do(command, count, argument)
        latencies = await self.receiver.do("take", count, ARRIVAL_SECONDS)
        after = machine.cpu_seconds(self.pids)
        cpu = {name: after[name] - before[name] for name in before}
        return Round(count, seconds, latencies, cpu, time.monotonic() - started)


@dataclass(frozen=True, slots=True)
class Compared:
    """The rounds of both ways."""

    gateway: list[Round]
    sdk: list[Round]


@asynccontextmanager
async def opened(
    stage: Stage, room: str, sender: str, receiver: str, lanes: int
) -> AsyncIterator[Way]:
    """A way through a room of its own, with so many texts in flight at most."""
    async with (
        working(receiver, stage.place(room, "receiver")) as listening,
        working(sender, stage.place(room, "sender")) as sending,
    ):
        pids = {"sender": sending.pid, "receiver": listening.pid, **stage.pids}
        if sender.startswith("sdk") and receiver.startswith("sdk"):
            del pids["gateway"]
        way = Way(sending, listening, pids)
        await sending.do("until_heard", lanes)
        yield way


async def compare(
    gateway: Way, sdk: Way, rounds: int, command: str, count: int, argument: float
) -> Compared:
    compared = Compared([], [])
    for number in range(rounds):
        # Each is first as often as the other (nearly): what the first leaves behind meets both.
        turns = [(gateway, compared.gateway), (sdk, compared.sdk)]
        for way, measured in turns if number % 2 == 0 else reversed(turns):
            measured.append(await way.round(command, count, argument))
    return compared


def latency_table(named: Mapping[str, Sequence[Round]]) -> str:
    rows = [
        (
            name,
            f"{median_percentile(rounds, 50):.2f}",
            f"{median_percentile(rounds, 99):.2f}",
            f"{max(each.percentile(100) for each in rounds):.2f}",
            arrived(rounds),
        )
        for name, rounds in named.items()
    ]
    return markdown(("way", "p50 ms", "p99 ms", "slowest ms", "arrived"), rows)


def median_percentile(rounds: Sequence[Round], percent: int) -> float:
    return median(each.percentile(percent) for each in rounds)


def arrived(rounds: Sequence[Round]) -> str:
    arrived, sent = sum(len(each.latencies) for each in rounds), sum(each.sent for each in rounds)
    return f"all {sent:,}" if arrived == sent else f"{arrived:,} of {sent:,}"


def percentile(microseconds: Sequence[int], percent: int) -> float:
    """In milliseconds."""
    ordered = sorted(microseconds)
    return ordered[-(-len(ordered) * percent // 100) - 1] / 1000 if ordered else float("nan")

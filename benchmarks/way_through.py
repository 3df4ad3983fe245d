"""`python -m benchmarks.way_through`: what the gateway costs, beside LiveKit's SDK on its own.

One run on one real LiveKit server, over the loopback interface. Both ways take turns in short
rounds, so that whatever else the machine does falls on both. Prints Markdown on standard output.
"""

import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from statistics import median

from benchmarks import machine
from benchmarks.runner import markdown, run
from benchmarks.stage import Stage, Worker, report, working
from benchmarks.texts import TEXT_BYTES

WARM_UP = 100
"""Texts before the first round that counts: connections, caches, and the allocator's first pages."""

ALONE_ROUNDS = 5
ALONE_TEXTS = 400
"""The 99th percentile of a round is then its fourth slowest text."""

PAUSE = 0.005
"""Seconds between two texts that are sent alone: longer than one needs to arrive."""

PIECE_ROUNDS = 3
PIECES = 200
PIECE_INTERVAL = 0.01
"""A hundred pieces a second is what a fast model writes."""

LOAD_ROUNDS = 5
LOAD_TEXTS = 1_500
"""Some 0.5 to 1.5 s a round."""

LANES = (1, 4, 16)

ARRIVAL_SECONDS = 5.0
"""What has not arrived so long after the last text was accepted is lost."""

CPU_BOUND = 0.9
"""A client that uses so much of one core may be what limits the rate."""

RUN_SECONDS = 175.0
"""It takes about 100; nobody waits for more than three minutes."""


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
        ordered = sorted(self.latencies)
        return ordered[-(-len(ordered) * percent // 100) - 1] / 1000 if ordered else float("nan")


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
async def opened(stage: Stage, room: str, sender: str, receiver: str) -> AsyncIterator[Way]:
    """A way through a room of its own, warmed up."""
    async with (
        working(receiver, stage.place(room, "receiver")) as listening,
        working(sender, stage.place(room, "sender")) as sending,
    ):
        pids = {"sender": sending.pid, "receiver": listening.pid, **stage.pids}
        if sender.startswith("sdk") and receiver.startswith("sdk"):
            del pids["gateway"]
        way = Way(sending, listening, pids)
        await sending.do("until_heard", max(LANES))
        await way.round("at_once", WARM_UP, max(LANES))
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


@dataclass(frozen=True, slots=True)
class Figures:
    alone: Compared
    pieces: Compared
    load: dict[int, Compared]
    """By texts in flight."""


async def measure(stage: Stage) -> str:
    async with AsyncExitStack() as stack:
        report("Latency: opening both ways")
        gateway = await stack.enter_async_context(
            opened(stage, "latency-gateway", "http_sender", "http_receiver")
        )
        sdk = await stack.enter_async_context(
            opened(stage, "latency-sdk", "sdk_sender", "sdk_receiver")
        )
        report("Latency: one text at a time")
        alone = await compare(gateway, sdk, ALONE_ROUNDS, "one_by_one", ALONE_TEXTS, PAUSE)
        report("Latency: pieces of a streamed text")
        pieces = await compare(gateway, sdk, PIECE_ROUNDS, "piecewise", PIECES, PIECE_INTERVAL)
    async with AsyncExitStack() as stack:
        report("Rate: opening both ways")
        gateway = await stack.enter_async_context(
            opened(stage, "rate-gateway", "http_sender", "sdk_receiver")
        )
        sdk = await stack.enter_async_context(
            opened(stage, "rate-sdk", "sdk_sender", "sdk_receiver")
        )
        load = {}
        for lanes in LANES:
            report(f"Rate: {lanes} in flight")
            load[lanes] = await compare(gateway, sdk, LOAD_ROUNDS, "at_once", LOAD_TEXTS, lanes)
    return tables(Figures(alone, pieces, load))


# The tables


def tables(figures: Figures) -> str:
    return "\n\n".join(
        [
            f"One text of {TEXT_BYTES} bytes at a time, from just before it is sent until the receiver"
            f" has it ({ALONE_ROUNDS} rounds of {ALONE_TEXTS}):",
            _latency_table(figures.alone),
            f"Pieces of one streamed text, {1 / PIECE_INTERVAL:g} a second ({PIECE_ROUNDS} rounds of"
            f" {PIECES}):",
            _latency_table(figures.pieces),
            f"Whole texts of {TEXT_BYTES} bytes, accepted per second ({LOAD_ROUNDS} rounds of"
            f" {LOAD_TEXTS}; the receiver is the SDK in both cases):",
            _rate_table(figures.load),
            "Processor time per text in those rounds, in microseconds:",
            _cpu_table(figures.load),
            _remark(figures.load),
        ]
    )


def _latency_table(compared: Compared) -> str:
    rows = []
    for name, rounds in (
        ("POST to gateway, read as SSE", compared.gateway),
        ("SDK to SDK", compared.sdk),
    ):
        p50, p99 = (median(each.percentile(percent) for each in rounds) for percent in (50, 99))
        worst = max(each.percentile(100) for each in rounds)
        rows.append((name, f"{p50:.2f}", f"{p99:.2f}", f"{worst:.2f}", _arrived(rounds)))
    return markdown(("way", "p50 ms", "p99 ms", "slowest ms", "arrived"), rows)


def _rate_table(load: dict[int, Compared]) -> str:
    rows = []
    for lanes, compared in load.items():
        gateway, sdk = (_rate(rounds) for rounds in (compared.gateway, compared.sdk))
        rows.append(
            (
                str(lanes),
                f"{gateway:,.0f}",
                f"{sdk:,.0f}",
                f"{gateway / sdk:.0%}",
                f"{_arrived(compared.gateway)}; {_arrived(compared.sdk)}",
            )
        )
    header = ("in flight", "POSTs/s", "SDK send_text/s", "POST of SDK", "arrived (POST; SDK)")
    return markdown(header, rows)


def _cpu_table(load: dict[int, Compared]) -> str:
    names = ("gateway", "sender", "livekit-server", "receiver")
    rows = [
        (
            name,
            *(_cell(_cpu_per_text(rounds, process)) for process in names),
            f"{_sender_share(rounds):.0%}",
            f"{_machine_share(rounds):.0%}",
        )
        for name, rounds in _named(load)
    ]
    return markdown(("", *names, "sender of one core", "all of all cores"), rows)


def _remark(load: dict[int, Compared]) -> str:
    """Where a client, and not what it measures, may have been the limit."""
    bound = [name for name, rounds in _named(load) if _sender_share(rounds) >= CPU_BOUND]
    if not bound:
        return f"No sender used {CPU_BOUND:.0%} of a core, so none was bound by its processor."
    return (
        f"Bound by the sender's processor ({CPU_BOUND:.0%} of a core or more): {'; '.join(bound)}."
    )


def _named(load: dict[int, Compared]) -> Iterator[tuple[str, list[Round]]]:
    for lanes, compared in load.items():
        yield f"POST, {lanes} in flight", compared.gateway
        yield f"SDK, {lanes} in flight", compared.sdk


def _rate(rounds: Sequence[Round]) -> float:
    return median(each.rate for each in rounds)


def _arrived(rounds: Sequence[Round]) -> str:
    arrived, sent = sum(len(each.latencies) for each in rounds), sum(each.sent for each in rounds)
    return f"all {sent:,}" if arrived == sent else f"{arrived:,} of {sent:,}"


def _cpu_per_text(rounds: Sequence[Round], name: str) -> float | None:
    used = [each.cpu[name] / each.sent * 1e6 for each in rounds if name in each.cpu]
    return median(used) if used else None


def _sender_share(rounds: Sequence[Round]) -> float:
    return median(each.cpu.get("sender", 0.0) / each.span for each in rounds)


def _machine_share(rounds: Sequence[Round]) -> float:
    return median(sum(each.cpu.values()) / each.span / machine.cores() for each in rounds)


def _cell(microseconds: float | None) -> str:
    return "-" if microseconds is None else f"{microseconds:.0f}"


if __name__ == "__main__":
    sys.exit(run(measure, within=RUN_SECONDS))

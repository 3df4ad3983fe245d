"""`python -m benchmarks.way_through`: what the gateway costs, beside LiveKit's SDK on its own.

One run on one real LiveKit server, over the loopback interface. Both ways take turns in short
rounds, so that whatever else the machine does falls on both. Prints Markdown on standard output.
"""

import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from statistics import median

from benchmarks import machine
from benchmarks.runner import markdown, run
from benchmarks.stage import Stage, report
from benchmarks.texts import TEXT_BYTES
from benchmarks.ways import Compared, Round, Way, arrived, compare, latency_table, opened

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

CPU_BOUND = 0.9
"""A client that uses so much of one core may be what limits the rate."""

RUN_SECONDS = 175.0
"""It takes about 100; nobody waits for more than three minutes."""


@dataclass(frozen=True, slots=True)
class Figures:
    alone: Compared
    pieces: Compared
    load: dict[int, Compared]
    """By texts in flight."""


@asynccontextmanager
async def _warmed_up(stage: Stage, room: str, sender: str, receiver: str) -> AsyncIterator[Way]:
    async with opened(stage, room, sender, receiver, max(LANES)) as way:
        await way.round("at_once", WARM_UP, max(LANES))
        yield way


async def measure(stage: Stage) -> str:
    async with AsyncExitStack() as stack:
        report("Latency: opening both ways")
        gateway = await stack.enter_async_context(
            _warmed_up(stage, "latency-gateway", "http_sender", "http_receiver")
        )
        sdk = await stack.enter_async_context(
            _warmed_up(stage, "latency-sdk", "sdk_sender", "sdk_receiver")
        )
        report("Latency: one text at a time")
        alone = await compare(gateway, sdk, ALONE_ROUNDS, "one_by_one", ALONE_TEXTS, PAUSE)
        report("Latency: pieces of a streamed text")
        pieces = await compare(gateway, sdk, PIECE_ROUNDS, "piecewise", PIECES, PIECE_INTERVAL)
    async with AsyncExitStack() as stack:
        report("Rate: opening both ways")
        gateway = await stack.enter_async_context(
            _warmed_up(stage, "rate-gateway", "http_sender", "sdk_receiver")
        )
        sdk = await stack.enter_async_context(
            _warmed_up(stage, "rate-sdk", "sdk_sender", "sdk_receiver")
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
            latency_table(_names(figures.alone)),
            f"Pieces of one streamed text, {1 / PIECE_INTERVAL:g} a second ({PIECE_ROUNDS} rounds of"
            f" {PIECES}):",
            latency_table(_names(figures.pieces)),
            f"Whole texts of {TEXT_BYTES} bytes, accepted per second ({LOAD_ROUNDS} rounds of"
            f" {LOAD_TEXTS}; the receiver is the SDK in both cases):",
            _rate_table(figures.load),
            "Processor time per text in those rounds, in microseconds:",
            _cpu_table(figures.load),
            _remark(figures.load),
        ]
    )


def _names(compared: Compared) -> dict[str, list[Round]]:
    return {"POST to gateway, read as SSE": compared.gateway, "SDK to SDK": compared.sdk}


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
                f"{arrived(compared.gateway)}; {arrived(compared.sdk)}",
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

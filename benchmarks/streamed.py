"""`python -m benchmarks.streamed`: texts that are streamed by POST, beside those of a bare SDK writer.

The receiver is an SDK participant in both cases, in a process of its own.
"""

import sys
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from math import nan

from benchmarks import machine
from benchmarks.receivers import Digested, Streamed
from benchmarks.runner import markdown, run
from benchmarks.senders import BulkSent
from benchmarks.stage import Stage, report
from benchmarks.texts import BULKY_LENGTH
from benchmarks.ways import (
    ARRIVAL_SECONDS,
    Compared,
    Way,
    compare,
    latency_table,
    median_percentile,
    opened,
    percentile,
)

PIECES = 2_000
PIECE_INTERVAL = 0.01
"""A hundred pieces a second is what a fast model writes."""

WARM_UP = 100
"""Texts before the pieces: connections, caches, and the allocator's first pages."""

PIECE_GOALS = {50: 2.0, 99: 5.0}
"""Milliseconds beyond the SDK, by percentile."""

BULKY_PIECES = {"gateway": 7_000, "SDK": 1_400}
"""Just over 100 MB; of the SDK's a fifth, which says its rate as well."""

BULKY_WARM_UP = 350
"""Pieces, 5 MB: more than LiveKit's SDK holds of a sender that it slows down, some 9 MB in its own memory
once. The log of events, which keeps 8 MiB, fills up while it is measured."""

BULKY_ARRIVAL = 30.0
"""Seconds for what LiveKit holds of it when it is accepted."""

GROWTH_GOAL = 16
"""MB."""

STREAMS = 500
STREAM_INTERVAL = 0.5
STREAM_PIECES = {"gateway": 40, "SDK": 20}
"""Twenty seconds, and ten. So many of the SDK's writers take two to three times as long as they should:
each that waits for its answer is handed every event of the process."""

RUN_SECONDS = 300.0
"""It takes about 160."""

WAYS = {"gateway": "http_sender", "SDK": "sdk_sender"}
TITLES = {"gateway": "POST to gateway", "SDK": "SDK writer"}


@dataclass(frozen=True, slots=True)
class Bulk:
    """One way's large text."""

    sent: BulkSent
    received: Digested | None
    growth: int
    """Most bytes that the sending side (the gateway, or the SDK's process) held beyond those before."""


@dataclass(frozen=True, slots=True)
class Streams:
    """One way's many streams."""

    pieces: int
    """Of each."""
    seconds: float
    received: list[Streamed]

    @property
    def whole(self) -> int:
        """Those that are complete and in order."""
        return sum(
            each.complete and each.in_order and len(each.latencies) == self.pieces
            for each in self.received
        )

    @property
    def latencies(self) -> list[int]:
        return [taken for each in self.received for taken in each.latencies]

    def worst(self, percent: int) -> float:
        """Milliseconds, of the stream where it is highest."""
        return max((percentile(each.latencies, percent) for each in self.received), default=nan)


async def measure(stage: Stage) -> str:
    # First: what the gateway lets go of after another round would hide what this one takes.
    bulk = await _bulk(stage)
    return "\n\n".join([await _pieces(stage), bulk, await _streams(stage)])


async def _ways(
    stack: AsyncExitStack, stage: Stage, name: str, receiver: str, lanes: int
) -> dict[str, Way]:
    return {
        way: await stack.enter_async_context(
            opened(stage, f"{name}-{way}", sender, receiver, lanes)
        )
        for way, sender in WAYS.items()
    }


# One stream at the speed of a model


async def _pieces(stage: Stage) -> str:
    async with AsyncExitStack() as stack:
        ways = await _ways(stack, stage, "pieces", "sdk_receiver", 1)
        for way in ways.values():
            await way.round("at_once", WARM_UP, 1)
        report(f"{PIECES:,} pieces of one stream")
        compared = await compare(
            ways["gateway"], ways["SDK"], 1, "piecewise", PIECES, PIECE_INTERVAL
        )
    return _pieces_table(compared)


def _pieces_table(compared: Compared) -> str:
    beyond = [
        f"p{percent}: {_beyond(compared, percent):+.2f} ms (goal: at most {goal:g})"
        for percent, goal in PIECE_GOALS.items()
    ]
    table = latency_table({TITLES["gateway"]: compared.gateway, TITLES["SDK"]: compared.sdk})
    return (
        f"Pieces of one streamed text, {1 / PIECE_INTERVAL:g} a second, from just before each is written"
        f" until an SDK receiver has it:\n\n{table}\n\nBeyond the SDK writer: {'; '.join(beyond)}."
    )


def _beyond(compared: Compared, percent: int) -> float:
    return median_percentile(compared.gateway, percent) - median_percentile(compared.sdk, percent)


# One large text


async def _bulk(stage: Stage) -> str:
    bulks: dict[str, Bulk] = {}
    async with AsyncExitStack() as stack:
        ways = await _ways(stack, stage, "bulk", "sdk_digest_receiver", 1)
        for name, way in ways.items():
            report(f"A large text by {TITLES[name]}")
            await _one_bulk(way, BULKY_WARM_UP)
            bulks[name] = await _one_bulk(way, BULKY_PIECES[name])
    return _bulk_table(bulks)


async def _one_bulk(way: Way, pieces: int) -> Bulk:
    sending_side = way.pids.get("gateway", way.pids["sender"])
    async with machine.growing(sending_side) as growth:
        sent = BulkSent(**await way.sender.do("bulk", pieces))
    received = await way.receiver.do("take", 1, BULKY_ARRIVAL)
    return Bulk(sent, Digested(**received[0]) if received else None, growth.most)


def _bulk_table(bulks: Mapping[str, Bulk]) -> str:
    rows = [
        (
            TITLES[name],
            f"{bulk.sent.size / 1e6:.1f}",
            _outcome(bulk),
            f"{bulk.sent.size / bulk.sent.seconds / 1e6:.1f}",
            f"{bulk.sent.waited / bulk.sent.seconds:.0%}",
            f"{bulk.sent.longest_wait * 1e3:.0f}",
            f"{bulk.growth / 1e6:.1f}",
        )
        for name, bulk in bulks.items()
    ]
    header = ("way", "MB", "received", "MB/s", "sender waited", "longest wait ms", "memory +MB")
    return (
        f"One text, written in pieces of {BULKY_LENGTH:,} characters as fast as it is taken; memory is the"
        " most that the gateway (or the SDK writer's process) held beyond what it had before (goal: under"
        f" {GROWTH_GOAL}):\n\n{markdown(header, rows)}"
    )


def _outcome(bulk: Bulk) -> str:
    sent, received = bulk.sent, bulk.received
    if received is None:
        return "no end"
    if received == Digested(sent.size, sent.sha256, complete=True):
        return "equal"
    return f"{received.size:,} bytes, {'' if received.complete else 'in'}complete, not equal"


# Many streams


async def _streams(stage: Stage) -> str:
    streams: dict[str, Streams] = {}
    async with AsyncExitStack() as stack:
        ways = await _ways(stack, stage, "streams", "sdk_stream_receiver", STREAMS)
        for name, way in ways.items():
            report(f"{STREAMS} streams by {TITLES[name]}")
            pieces = STREAM_PIECES[name]
            seconds = await way.sender.do("piecewise", pieces, STREAM_INTERVAL, STREAMS)
            received = await way.receiver.do("take", STREAMS, ARRIVAL_SECONDS)
            streams[name] = Streams(pieces, seconds, [Streamed(**each) for each in received])
    return _streams_table(streams)


def _streams_table(streams: Mapping[str, Streams]) -> str:
    rows = [
        (
            TITLES[name],
            *(f"{percentile(each.latencies, percent):.1f}" for percent in (50, 99, 100)),
            *(f"{each.worst(percent):.1f}" for percent in (50, 99)),
            f"{each.whole} of {STREAMS}",
            f"{len(each.latencies):,} of {STREAMS * each.pieces:,}",
            f"{each.seconds:.1f} of {each.pieces * STREAM_INTERVAL:.1f}",
        )
        for name, each in streams.items()
    ]
    header = (
        *("way", "p50 ms", "p99 ms", "slowest ms", "worst stream's p50", "worst stream's p99"),
        *("complete and in order", "pieces", "took s"),
    )
    return (
        f"Pieces of {STREAMS} streams that are open at once, {1 / STREAM_INTERVAL:g} a second each, their"
        f" openings included:\n\n{markdown(header, rows)}"
    )


if __name__ == "__main__":
    sys.exit(run(measure, within=RUN_SECONDS))

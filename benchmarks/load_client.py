"""The compiled load of `make bench-delivery`: many readers of event streams, and who publishes the events.

Python would be most of what is measured here, so it is a program in Go (`benchmarks/load/`), built when
a benchmark starts; Go's own cache makes that quick from the second time on.
"""

import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.stage import Worker, started

BUILD_SECONDS = 300.0
"""It takes some ten where Go has built nothing yet."""

SOURCE = Path(__file__).with_name("load")


class LoadNotBuilt(Exception):
    """There is no load, so there is nothing to measure; the text says what to do."""


def build_load(folder: Path) -> Path:
    """The program's path."""
    go = shutil.which("go")
    if go is None:
        raise LoadNotBuilt("The load is in Go: install it (https://go.dev/doc/install).")
    program = folder / "load"
    # Without cgo no C compiler is needed; what version control says of a checkout is not.
    command = [go, "build", "-buildvcs=false", "-o", str(program), "."]
    built = subprocess.run(
        command,
        cwd=SOURCE,
        env={**os.environ, "CGO_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS,
        check=False,
    )
    if built.returncode:
        raise LoadNotBuilt(f"The load could not be built:\n{built.stderr}")
    return program


@dataclass(frozen=True, slots=True)
class Taken:
    """What came in one round."""

    expected: int
    received: int
    doubled: int
    disordered: int
    """Behind one with a higher number."""
    stray: int
    """Of an earlier round."""
    closed: int
    """Connections that the server ended since they were opened."""
    bytes: int
    seconds: float
    """Since the first text was due, until the last arrived."""
    p50: float
    """Milliseconds since a text was due."""
    p99: float
    slowest: float

    @property
    def lost(self) -> int:
        return self.expected - self.received


class Readers:
    """Many readers in one process; one thread reads them all."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self.pid = worker.pid

    async def open(self, count: int, stalled: int = 0) -> None:
        """So many new event streams, instead of earlier ones; the first `stalled` of them are not read."""
        await self._worker.do("open", count, stalled)

    async def begin(self, first: int, count: int) -> None:
        """From here on those texts are waited for, by every reader those of its topic."""
        await self._worker.do("begin", first, count)

    async def take(self, within: float) -> Taken:
        """What has come by the time that all is there, nothing comes any more, or the time is over."""
        return Taken(**await self._worker.do("take", within))

    async def alive(self) -> int:
        """Event streams that the server has not ended."""
        return int(await self._worker.do("alive"))

    async def resume(self, count: int) -> Sequence[float]:
        """Milliseconds from opening a connection to its first text, for so many one after the other."""
        waits: list[float] = await self._worker.do("resume", count)
        return waits


class Publisher:
    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self.pid = worker.pid

    async def publish(self, rate: float, count: int, first: int) -> "Published":
        """So many texts, so many a second; each says when it was due."""
        return Published(**await self._worker.do("publish", rate, count, first))


@dataclass(frozen=True, slots=True)
class Published:
    sent: int
    """Those that the server took."""
    late: float
    """Milliseconds from when a text was due until it was written, at the 99th percentile."""


@asynccontextmanager
async def reading(load: Path, place: Mapping[str, Any]) -> AsyncIterator[Readers]:
    async with started("readers", (str(load), "read"), json.dumps(place)) as worker:
        yield Readers(worker)


@asynccontextmanager
async def publishing(load: Path, target: Mapping[str, Any]) -> AsyncIterator[Publisher]:
    async with started("publisher", (str(load), "publish"), json.dumps(target)) as worker:
        yield Publisher(worker)

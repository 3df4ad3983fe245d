"""What it was measured on, and what the measuring cost each process."""

import asyncio
import os
import platform
import resource
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from livekit import rtc

from gateway import __version__
from tools.livekit_server import VERSION as LIVEKIT_SERVER_VERSION

MEMORY_LOOKS = 0.1
"""Seconds between two looks at a process's memory: each costs some 20 us."""

_PROC = Path("/proc")


def cpu_seconds(pids: Mapping[str, int]) -> dict[str, float]:
    """Processor time that each process has used, by its name; empty where there is no /proc."""
    if not _PROC.is_dir():
        return {}
    return {name: _cpu_seconds(pid) for name, pid in pids.items()}


def _cpu_seconds(pid: int) -> float:
    # The program's name is in brackets and may contain blanks; utime and stime are fields 14 and 15.
    fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int | str = "self") -> int:
    """Bytes that the process holds in memory; 0 where there is no /proc."""
    statm = _PROC / str(pid) / "statm"
    return int(statm.read_text().split()[1]) * resource.getpagesize() if statm.is_file() else 0


class Growth:
    """How far the memory of a process has risen above what it was when this was made."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._before = memory(pid)
        self.most = 0

    def look(self) -> None:
        self.most = max(self.most, memory(self._pid) - self._before)


@asynccontextmanager
async def growing(pid: int) -> AsyncIterator[Growth]:
    """Looks at the process's memory while the context lasts."""
    growth = Growth(pid)

    async def watch() -> None:
        while True:
            growth.look()
            await asyncio.sleep(MEMORY_LOOKS)

    watching = asyncio.create_task(watch())
    try:
        yield growth
    finally:
        watching.cancel()
        growth.look()


def children(pid: int) -> list[int]:
    """The processes that this one has started; none where there is no /proc."""
    started = _PROC / str(pid) / "task" / str(pid) / "children"
    return [int(child) for child in started.read_text().split()] if started.is_file() else []


def most_files() -> int:
    """File descriptors that a process may have here."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]


def allow_many_files() -> None:
    """A LiveKit connection takes a hundred descriptors, and the server's end of it some too."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files(), most_files()))


class Quiet:
    """How quiet the machine was: what others than us and our children used of it since we began."""

    def __init__(self) -> None:
        self.load_before = os.getloadavg()[0]
        self._started = time.monotonic()
        self._busy = _busy_seconds()
        self._ours = _our_seconds()

    def seconds(self) -> float:
        return time.monotonic() - self._started

    def others_share(self) -> float:
        """Of all cores; to be asked when our children have ended. The kernel's own work is in it."""
        others = _busy_seconds() - self._busy - (_our_seconds() - self._ours)
        return max(0.0, others) / self.seconds() / cores()


def _busy_seconds() -> float:
    stat = _PROC / "stat"
    if not stat.is_file():
        return 0.0
    user, nice, system, _idle, _iowait, irq, softirq, *_ = stat.read_text().split()[1:9]
    busy = sum(map(int, (user, nice, system, irq, softirq)))
    return busy / os.sysconf("SC_CLK_TCK")


def _our_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def facts() -> str:
    return (
        f"{cores()} cores ({_processor()}), {platform.system()}, Python {platform.python_version()},"
        f" gateway {__version__}, livekit SDK {rtc.__version__}, livekit-server {LIVEKIT_SERVER_VERSION}"
    )


def cores() -> int:
    return os.cpu_count() or 1


def _processor() -> str:
    info = _PROC / "cpuinfo"
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()

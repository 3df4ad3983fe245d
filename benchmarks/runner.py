"""What every benchmark does around its measuring: start the stage, stay in time, print Markdown."""

import asyncio
import sys
import warnings
from collections.abc import Awaitable, Callable, Sequence

from jwt.warnings import InsecureKeyLengthWarning

from benchmarks import machine
from benchmarks.load_client import LoadNotBuilt
from benchmarks.stage import Stage, WorkerFailed, report, staged
from tests.agent.running_agent import AgentFailed
from tools.agent_environment import AgentEnvironmentFailed
from tools.livekit_server import LiveKitServerError

FAILURES = (LiveKitServerError, WorkerFailed, LoadNotBuilt, AgentEnvironmentFailed, AgentFailed)
"""Whose text is for a person."""


def run(measure: Callable[[Stage], Awaitable[str]], *, within: float, gateway: bool = True) -> int:
    """Prints what `measure` returns, under a line that says where it was measured. The exit status."""

    def measured() -> str:
        with staged(gateway=gateway) as stage:
            return asyncio.run(_in_time(lambda: measure(stage), within))

    return _printed(measured, within)


def run_alone(measure: Callable[[], Awaitable[str]], *, within: float) -> int:
    """As `run`, without a stage: `measure` starts what it needs."""
    return _printed(lambda: asyncio.run(_in_time(measure, within)), within)


async def _in_time(measure: Callable[[], Awaitable[str]], within: float) -> str:
    async with asyncio.timeout(within):
        return await measure()


def _printed(measured: Callable[[], str], within: float) -> int:
    # LiveKit's development secret is six bytes long.
    warnings.simplefilter("ignore", InsecureKeyLengthWarning)
    machine.allow_many_files()
    quiet = machine.Quiet()
    try:
        figures = measured()
    except FAILURES as error:
        report(str(error))
        return 1
    except TimeoutError:
        report(f"Not done after {within:g} s: this machine is too slow, or too busy.")
        return 1
    print(
        f"{machine.facts()}. Took {quiet.seconds():.0f} s; the load average before was"
        f" {quiet.load_before:.2f}, and other programs used {quiet.others_share():.0%} of the cores"
        " meanwhile.\n"
    )
    print(figures)
    sys.stdout.flush()
    return 0


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, [":--", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)

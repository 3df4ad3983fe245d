"""`python -m benchmarks.joins`: memory after many joins and leaves in sequence, ours beside the SDK's."""

import sys

from benchmarks.runner import markdown, run
from benchmarks.stage import Stage, report, working

WAYS = {"gateway": "gateway_connections", "SDK": "sdk_connections"}

JOINS = 1_000
ROW = 100
BATCH = 50
"""Joins and leaves that a worker makes before it answers."""

BASE = 200
"""From then on memory should stay where it is."""

RUN_SECONDS = 420.0
"""It takes about 240."""


async def measure(stage: Stage) -> str:
    held: dict[str, dict[int, int]] = {way: {} for way in WAYS}
    async with (
        working(WAYS["gateway"], stage.place("joins-gateway", "unused")) as gateway,
        working(WAYS["SDK"], stage.place("joins-sdk", "unused")) as sdk,
    ):
        for done in range(BATCH, JOINS + 1, BATCH):
            for way, worker in (("gateway", gateway), ("SDK", sdk)):
                held[way][done] = await worker.do("come_and_go", BATCH)
            if done % ROW == 0:
                report(f"{done} joins and leaves of {JOINS}")
    rows = [
        (
            f"{done:,}",
            *(cell for way in WAYS for cell in _cells(held[way], done)),
        )
        for done in range(ROW, JOINS + 1, ROW)
    ]
    header = ("joins and leaves", "gateway's, MB", f"to {BASE}", "SDK, MB", f"to {BASE}")
    return (
        f"Memory of the process after joins and leaves, one after the other (goal: {JOINS:,} within 5 %"
        f" of {BASE}):\n\n{markdown(header, rows)}"
    )


def _cells(held: dict[int, int], done: int) -> tuple[str, str]:
    return f"{held[done] / 1e6:.1f}", f"{held[done] / held[BASE]:.3f}"


if __name__ == "__main__":
    sys.exit(run(measure, within=RUN_SECONDS, gateway=False))

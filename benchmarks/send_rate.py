"""`python -m benchmarks.send_rate`: texts that one connection sends in a second, ours beside the SDK's: by
POST to a gateway, by the gateway's own way to LiveKit without HTTP before it, and by the SDK alone.

Nobody else is in the rooms: on a small machine a receiver would be half of what is measured.
"""

import sys
from contextlib import AsyncExitStack
from statistics import median

from benchmarks.runner import markdown, run
from benchmarks.stage import Stage, report, working
from benchmarks.texts import TEXT_BYTES

LANES = (1, 4, 16, 64, 256)

ROUNDS = 5
TEXTS = 3_000
"""One to five seconds a round."""

WARM_UP = 500

RUN_SECONDS = 300.0
"""It takes about 180."""

WAYS = {"POST": "http_sender", "gateway": "rooms_sender", "SDK": "sdk_sender"}


async def measure(stage: Stage) -> str:
    rates: dict[tuple[str, int], list[float]] = {}
    async with AsyncExitStack() as stack:
        senders = {
            way: await stack.enter_async_context(
                working(role, stage.place(f"send-{way}", "sender"))
            )
            for way, role in WAYS.items()
        }
        for worker in senders.values():
            await worker.do("at_once", WARM_UP, 4)
        for number in range(ROUNDS):
            report(f"Round {number + 1} of {ROUNDS}")
            for lanes in LANES:
                # Each is first as often as the other (nearly): what the first leaves behind meets both.
                for way in sorted(senders, reverse=bool(number % 2)):
                    seconds = await senders[way].do("at_once", TEXTS, lanes)
                    rates.setdefault((way, lanes), []).append(TEXTS / seconds)
    return _table({key: median(values) for key, values in rates.items()})


def _table(rates: dict[tuple[str, int], float]) -> str:
    best = max(rate for (way, _), rate in rates.items() if way == "SDK")
    rows = [
        (
            str(lanes),
            f"{rates['POST', lanes]:,.0f}",
            f"{rates['gateway', lanes]:,.0f}",
            f"{rates['SDK', lanes]:,.0f}",
            f"{rates['POST', lanes] / best:.2f}",
            f"{rates['gateway', lanes] / rates['SDK', lanes]:.2f}",
            f"{rates['gateway', lanes] / rates['gateway', 4]:.2f}",
        )
        for lanes in LANES
    ]
    header = (
        "in flight",
        "POSTs/s",
        "without HTTP/s",
        "SDK send_text/s",
        "POST to the SDK's best",
        "without HTTP to SDK",
        "without HTTP to its own at 4",
    )
    return (
        f"Texts of {TEXT_BYTES} bytes that one connection sends (median of {ROUNDS} rounds of"
        f" {TEXTS:,}):\n\n{markdown(header, rows)}"
    )


if __name__ == "__main__":
    sys.exit(run(measure, within=RUN_SECONDS))

"""What is sent: 70 bytes of ASCII that say their number and when they were sent.

The clock is CLOCK_MONOTONIC, one for all processes of a machine, so the receiver alone can tell how
long a text took.
"""

import time
from collections.abc import Iterator

TEXT_BYTES = 70
"""A short chat message; also what one piece of a streamed answer weighs, framing aside."""

_NUMBER = 8
_STAMP = 20


def stamped(number: int) -> str:
    return f"{number:0{_NUMBER}} {time.monotonic_ns():0{_STAMP}} ".ljust(TEXT_BYTES, ".")


def latencies(text: str, now: int) -> Iterator[tuple[int, int]]:
    """Number and microseconds of each stamped text in `text`: LiveKit may join two pieces into one."""
    for start in range(0, len(text), TEXT_BYTES):
        number, stamp = text[start : start + TEXT_BYTES].split(" ")[:2]
        yield int(number), (now - int(stamp)) // 1000

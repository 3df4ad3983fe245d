"""What is sent: 70 bytes of ASCII that say their number and when they were sent.

The clock is CLOCK_MONOTONIC, one for all processes of a machine, so the receiver alone can tell how
long a text took. Where the amount is what matters, it is pieces of words with some characters of
several bytes, no two of them the same.
"""

import random
import string
import time
from collections.abc import Iterator

TEXT_BYTES = 70
"""A short chat message; also what one piece of a streamed answer weighs, framing aside."""

LOOK = "."
"""What is sent only to learn who listens."""

BULKY_LENGTH = 14_000
"""Characters of a bulky piece, some 14,500 bytes: they fill one packet of LiveKit's, so that the SDK
writes with as few as the gateway, which takes what has arrived as one."""

_NUMBER = 8
_STAMP = 20


def stamped(number: int) -> str:
    return f"{number:0{_NUMBER}} {time.monotonic_ns():0{_STAMP}} ".ljust(TEXT_BYTES, ".")


def latencies(text: str, now: int) -> Iterator[tuple[int, int]]:
    """Number and microseconds of each stamped text in `text`: LiveKit may join two pieces into one.

    None for a text that is not stamped.
    """
    if len(text) % TEXT_BYTES:
        return
    for start in range(0, len(text), TEXT_BYTES):
        number, stamp = text[start : start + TEXT_BYTES].split(" ")[:2]
        yield int(number), (now - int(stamp)) // 1000


def bulky(number: int) -> str:
    """A long piece; the same for the same number."""
    start = number * _STRIDE % (len(_WORDS) - BULKY_LENGTH)
    return f"{number:0{_NUMBER}} " + _WORDS[start : start + BULKY_LENGTH - _NUMBER - 1]


_STRIDE = 7_919
"""A prime: pieces begin at ever other places."""


def _words(length: int) -> str:
    """Letters and blanks, and about every fiftieth character one of two to four bytes."""
    common = string.ascii_lowercase + " " * 6
    weights = [1.0] * len(common) + [0.16] * len(_LONG)
    return "".join(random.Random(1).choices(common + _LONG, weights, k=length))  # noqa: S311


_LONG = "\u00e9\u0436\u4e2d\U0001f600"

_WORDS = _words(250_000)

"""For what tells nobody that it has changed: a file, LiveKit's word in its SDK, a list of our own."""

import asyncio
from collections.abc import Callable

from tests.running_gateway import DEADLINE

POLL = 0.01
"""Seconds between looks."""


async def poll_until(
    true: Callable[[], object], *, within: float = DEADLINE, every: float = POLL
) -> None:
    """Returns once it is true. Where an event tells of it, that is to be waited for instead."""
    async with asyncio.timeout(within):
        while not true():
            await asyncio.sleep(every)

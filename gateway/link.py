"""From one LiveKit connection to whoever it carries: its events, its troubles, its end."""

import asyncio
from collections.abc import Callable

from gateway.events import Happening
from gateway.rooms.base import Listener, LostReason


class Link:
    """What hears a room for us. Events wait until the join has returned and the past is told."""

    def __init__(
        self,
        emit: Callable[[Happening], None],
        reconnecting: Callable[[], None],
        reconnected: Callable[[], None],
    ) -> None:
        self.lost: asyncio.Future[LostReason] = asyncio.get_running_loop().create_future()
        """Done when LiveKit has ended the connection."""
        self.listener = Listener(self._on_event, reconnecting, reconnected, self._on_lost)
        self._emit = emit
        self._held: list[Happening] | None = []

    def open(self) -> None:
        """Lets through what has waited, and all that comes."""
        held, self._held = self._held, None
        for event in held or ():
            self._emit(event)

    def _on_event(self, event: Happening) -> None:
        if self._held is None:
            self._emit(event)
        else:
            self._held.append(event)

    def _on_lost(self, reason: LostReason) -> None:
        if not self.lost.done():
            self.lost.set_result(reason)

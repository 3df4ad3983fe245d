"""The order in which the others closed their streams, put together from what is heard of them on two ways.

The end of a stream is told by its reader, and readers overtake one another: LiveKit's native library has
a task for each (seen: 137 of 640 ends out of their sender's order). That a stream was opened, and each of
its pieces and its trailer, is heard of in the sender's order as well, without a word on what has been read.
So here the ends wait for their turn among those.

A stream's turn is where its trailer comes, which may be before its end or after it. A whole text that fits
into one packet has none: its turn is where it is opened. Nothing tells it at once from one whose pieces are
still to come, as older SDKs send it, so such a text keeps that turn until a piece of it is heard of. If that
is after its end, it is told too early among other texts that its sender sends at the same time; it is not
held back for that, as all would have to be.
"""

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass

TURN_TIMEOUT = 1.0
"""Seconds that the end of a stream waits for its turn: for a trailer that was lost, or for an earlier stream
whose end does not come, it would wait for ever. Within 0.03 s it is there as a rule, within 0.7 on a machine
with five times more to do than it can."""


@dataclass(slots=True, eq=False)
class Place:
    """Of one stream among the closings of its sender."""

    sender: str
    stream_id: str
    whole: bool
    """All of it may have come with its opening: no piece of it has been heard of."""
    tell: Callable[[], None] | None = None
    """Tells the closing; since the stream has ended."""
    overdue_at: float = math.inf
    """In the loop's time."""
    overtaken: bool = False
    """Others have waited long enough for its end."""


class Closings:
    """Has the closing of each stream told in its turn."""

    def __init__(self) -> None:
        self._places: dict[str, Place] = {}
        """By stream id: of the streams that are open, or wait for their turn. Of an id that is used again
        the latest: two of one id are never open at once, whoever sends them."""
        self._turns: dict[str, dict[Place, None]] = {}
        """By sender, in order: those whose turn is known."""
        self._waiting: dict[Place, None] = {}
        """Those that have ended and are not told yet, in the order of their ends."""
        self._timer: asyncio.TimerHandle | None = None

    def opened(self, sender: str, stream_id: str, *, whole: bool) -> Place:
        """`whole`: its size is known from the beginning."""
        place = self._places[stream_id] = Place(sender, stream_id, whole)
        if whole:
            self._give_turn(place)
        return place

    def chunk(self, stream_id: str) -> None:
        place = self._places.get(stream_id)
        if place is not None and place.whole:
            place.whole = False
            self._take_turn(place)
            # Not from here: the SDK logs the event that was being handled, a user's text, if a listener fails.
            asyncio.get_running_loop().call_soon(self._advance, place.sender)

    def trailer(self, stream_id: str) -> None:
        place = self._places.get(stream_id)
        if place is not None and not place.overtaken:
            place.whole = False
            self._take_turn(place)
            self._give_turn(place)
            self._advance(place.sender)

    def ended(self, place: Place, tell: Callable[[], None], *, at_once: bool = False) -> None:
        """Calls `tell` when it is the stream's turn; at once, if no trailer will say when that is."""
        place.tell = tell
        self._waiting[place] = None
        if at_once or place.overtaken:
            self._tell(place)
        self._advance(place.sender)
        if place in self._waiting:
            place.overdue_at = asyncio.get_running_loop().time() + TURN_TIMEOUT
            if self._timer is None:
                self._look_again(place.overdue_at)

    def flush(self) -> None:
        """Tells what still waits: nothing more is heard of."""
        if self._timer is not None:
            self._timer.cancel()
        for place in [*self._waiting]:
            self._tell(place)

    def _look_again(self, at: float) -> None:
        """One timer for all that wait: one for each costs more than the rest of its waiting."""
        self._timer = asyncio.get_running_loop().call_at(at, self._look)

    def _look(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        overdue = [place for place in self._waiting if place.overdue_at <= now]
        try:
            for place in overdue:
                if place in self._waiting:
                    self._tell_overdue(place)
        finally:
            if self._waiting:
                self._look_again(next(iter(self._waiting)).overdue_at)

    def _tell_overdue(self, place: Place) -> None:
        turns = self._turns.get(place.sender, {})
        if place not in turns:
            self._tell(place)
            return
        for earlier in [*turns]:
            if earlier is place:
                break
            if earlier.tell is None:
                earlier.overtaken = True
                self._take_turn(earlier)
        self._advance(place.sender)

    def _advance(self, sender: str) -> None:
        while turns := self._turns.get(sender):
            place = next(iter(turns))
            if place.tell is None:
                return
            self._tell(place)

    def _tell(self, place: Place) -> None:
        self._take_turn(place)
        self._waiting.pop(place, None)
        if self._places.get(place.stream_id) is place:
            del self._places[place.stream_id]
        if place.tell is not None:
            place.tell()

    def _give_turn(self, place: Place) -> None:
        self._turns.setdefault(place.sender, {})[place] = None

    def _take_turn(self, place: Place) -> None:
        turns = self._turns.get(place.sender, {})
        turns.pop(place, None)
        if not turns:
            self._turns.pop(place.sender, None)

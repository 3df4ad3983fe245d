"""From the event logs to those who follow them: one pump for all event streams of the process.

A follower is a cursor on a log, not a queue. Those that stand at the same place are written the same
bytes, made once; one that does not take them falls behind, alone, and reads on from the log. Nothing here
waits: there is no task for each follower and none for each event.
"""

import asyncio
import logging
import random
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from heapq import heappop, heappush
from typing import NamedTuple, Protocol

from gateway.event_log import READ_BYTES, Entry, EventLog, Evicted, Position
from gateway.events import ClosingReason, Event, closing
from gateway.metrics import CLIENT_GONE, STALLED, Metrics

logger = logging.getLogger(__name__)

TURN_WRITES = 200
"""Writes between two looks at what else there is to do: some two milliseconds."""

TURN_CHANNELS = 50
"""Likewise, where each has few followers."""

TEND_TOGETHER = 1 / 30
"""Part of the heartbeat's interval by which what is due may be late, so that it is done together: one at a time,
each would wake the process."""

TEND_LATE = 1.0
"""Seconds by which it may be late at most: a token's end is due, too."""

FIRST_HEARTBEAT = 0.5
"""The first comes within a random part of the interval from here on: those that came at once, as after a
deploy, would else be due at once for ever."""

_DONE = object()

STALL_LOOKS = 4
"""How often it is looked, within the time that a client may take nothing, whether it has taken something."""


class Outlet(Protocol):
    """The body of one answer, which tells its follower when it is `blocked`, `writable`, and `lost`."""

    is_blocked: bool
    """Whether more has been written than the client takes now."""
    frame: Callable[[bytes], bytes]
    """The same function for all that are framed alike."""

    def write(self, data: bytes) -> None:
        """Takes what `frame` made. Never waits; raises RuntimeError where the client has gone."""

    def follow(self, listener: "Follower") -> None:
        """Whom it tells."""

    def unsent(self) -> int:
        """Bytes that the client has not taken yet."""

    def abort(self) -> None:
        """Drops the client: closing would wait for it to read."""


class Piece(NamedTuple):
    """Some READ_BYTES of what is written: whole events, or a part of one that is larger."""

    data: bytes
    ends_event: bool
    """Whether something else may be written after it."""
    is_last: bool = False
    """Whether it is known that there is no other behind it."""


class Form(Protocol):
    """How events are written."""

    def entries(self, entries: Iterable[Entry]) -> bytes:
        """With their ids; empty where this form shows none of them."""

    def pieces(self, entries: Iterable[Entry]) -> Iterator[Piece]:
        """Likewise, for one who reads alone: what is not asked for yet is held by the log only."""

    def event(self, event: Event, position: str | None = None) -> bytes:
        """One that is for this follower alone."""

    def heartbeat(self, position: str) -> bytes:
        """Says nothing, and moves the client's position."""


_NOTHING = Piece(b"", ends_event=True, is_last=True)


class Deadline(NamedTuple):
    at: float
    """Time of the loop."""
    reason: ClosingReason


class Tended(Protocol):
    """What has something due at some time."""

    @property
    def writes(self) -> int:
        """How many that will be, about."""

    def tend(self, now: float, heartbeat: float) -> float | None:
        """Does what is due; when to call next, None for never."""


class Pump:
    def __init__(self, metrics: Metrics, *, heartbeat: float, write_timeout: float) -> None:
        """`heartbeat`: seconds without a write after which a follower is sent one. `write_timeout`: seconds
        after which a client that takes nothing is dropped."""
        self._write_timeout = write_timeout
        self._metrics = metrics
        self._heartbeat = heartbeat
        self._channels: dict[tuple[EventLog, frozenset[str], Form, object], Channel] = {}
        self._hurried: OrderedDict[Channel, None] = OrderedDict()
        self._turns: Iterator[None] | None = None
        self._tick = min(heartbeat * TEND_TOGETHER, TEND_LATE)
        self._due: dict[int, dict[Tended, None]] = {}
        """Who is to be tended, by the tick at which."""
        self._ticks: list[int] = []
        """Those ticks, as a heap."""
        self._timer: asyncio.TimerHandle | None = None
        self._timer_tick = 0

    def follow(
        self,
        log: EventLog,
        topics: frozenset[str],
        form: Form,
        outlet: Outlet,
        beginning: Iterator[Piece],
        seq: int,
        deadline: Deadline,
    ) -> "Follower":
        """Writes `beginning`, and then what comes after `seq` on the topics, until the log ends, the
        follower leaves, or its deadline comes."""
        key = (log, topics, form, outlet.frame)
        channel = self._channels.get(key)
        if channel is None:
            channel = self._channels[key] = Channel(
                log,
                topics,
                form,
                outlet.frame,
                self._metrics,
                self,
                lambda: self._channels.pop(key),
            )
        follower = Follower(channel, outlet, beginning, seq, deadline.reason, self._write_timeout)
        follower.tick = self._tend_at(deadline.at, follower)
        channel.add(follower)
        self._metrics.event_streams_opened += 1
        outlet.follow(follower)  # which may have lost its client already
        return follower

    def begin(self, cohort: "Cohort") -> None:
        """It is sent heartbeats from now on."""
        wait = self._heartbeat * random.uniform(FIRST_HEARTBEAT, 1)  # noqa: S311 - no secret
        self._tend_at(asyncio.get_running_loop().time() + wait, cohort)

    def forget(self, follower: "Follower") -> None:
        """Its deadline: its client has gone before."""
        self._due.get(follower.tick, {}).pop(follower, None)

    def hurry(self, channel: "Channel") -> None:
        """Has it called soon to deliver."""
        self._hurried[channel] = None
        if self._turns is None:
            self._turns = self._work()
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        turns, self._turns = self._turns, None
        try:
            if turns is not None and next(turns, _DONE) is not _DONE:
                self._turns = turns
        finally:
            # An error of whoever is called goes to the loop, which logs it, and does not hold up the others.
            if self._turns is None and self._hurried:
                self._turns = self._work()
            if self._turns is not None:
                asyncio.get_running_loop().call_soon(self._turn)

    def _work(self) -> Iterator[None]:
        """Until nobody has anything to be written; yields when others should have their turn."""
        while self._hurried:
            for number in range(1, len(self._hurried) + 1):
                channel, _ = self._hurried.popitem(last=False)
                yield from channel.deliver(asyncio.get_running_loop().time())
                if number % TURN_CHANNELS == 0:
                    yield
            yield  # what is written goes out, and what is taken becomes known

    def _tend_at(self, at: float, tended: "Tended") -> int:
        """The tick at which it will be."""
        tick = int(at / self._tick) + 1
        together = self._due.get(tick)
        if together is not None:
            together[tended] = None
            return tick
        self._due[tick] = {tended: None}
        heappush(self._ticks, tick)
        if self._timer is None or tick < self._timer_tick:
            self._set_timer()
        return tick

    def _tend(self) -> None:
        now = asyncio.get_running_loop().time()
        self._timer = None
        tick = self._ticks[0]
        due = self._due[tick]
        writes = 0
        try:
            while due and writes < TURN_WRITES:
                tended, _ = due.popitem()
                writes += 1 + tended.writes
                at: float | None = now + self._heartbeat  # also after an error
                try:
                    at = tended.tend(now, self._heartbeat)
                finally:
                    if at is not None:
                        self._tend_at(at, tended)
        finally:
            if not due:
                del self._due[heappop(self._ticks)]
            self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._ticks:
            self._timer_tick = self._ticks[0]
            at = self._timer_tick * self._tick
            self._timer = asyncio.get_running_loop().call_at(at, self._tend)


class Cohort:
    """Some of a channel's followers who have the same, and are written at once what is new to them.

    There are several, so that who is written late in a round is written what has come during it, too: what comes
    waits for one round at most, and not for the end of one and all of the next.
    """

    __slots__ = ("_channel", "members", "read", "wrote_at")

    def __init__(self, channel: "Channel", read: int) -> None:
        self._channel = channel
        self.members: dict[Follower, None] = {}
        self.read = read
        """How many of the channel's entries they have been written."""
        self.wrote_at = 0.0
        """When they were last written something."""

    @property
    def writes(self) -> int:
        return len(self.members)

    def tend(self, now: float, heartbeat: float) -> float | None:
        """All have their heartbeat together: one by one, each would cost a look at when it was written last."""
        if not self.members:
            return None
        due = self.wrote_at + heartbeat
        if now < due:
            return due
        self._channel.beat(self, now)
        return now + heartbeat


class Channel:
    """The followers of the same topics of one log who are written the same bytes."""

    def __init__(
        self,
        log: EventLog,
        topics: frozenset[str],
        form: Form,
        frame: Callable[[bytes], bytes],
        metrics: Metrics,
        pump: Pump,
        emptied: Callable[[], object],
    ) -> None:
        self.log = log
        self.topics = topics
        self.form = form
        self.frame = frame
        self.metrics = metrics
        self._pump = pump
        self._emptied = emptied
        self._pending: list[Entry] = []
        """What some cohort has not been written yet."""
        self._past = 0
        """How many entries were there before."""
        self._cohorts: list[Cohort] = []
        self._behind: dict[Follower, None] = {}
        self._made: tuple[int, int, bytes, bytes] | None = None
        """Of the entries from the one number to the other: what is written, as it is and framed."""
        self._beat = b""
        self._beat_seq = -1
        log.watch(self._on_entry, topics)

    def add(self, follower: "Follower") -> None:
        self._behind[follower] = None
        self.hurry()

    def drop(self, follower: "Follower") -> None:
        self._leave_cohort(follower)
        self._behind.pop(follower, None)
        self._pump.forget(follower)
        if not self._cohorts and not self._behind:
            self.log.unwatch(self._on_entry, self.topics)
            self._emptied()

    def hurry(self) -> None:
        self._pump.hurry(self)

    def deliver(self, now: float) -> Iterator[None]:
        """Writes all that is new to those who have the rest, and the next piece to those who do not."""
        writes = 0
        for cohort in tuple(self._cohorts):
            writes += self._write(cohort, now)
            if writes >= TURN_WRITES:
                writes = 0
                yield
        self._forget_written()
        yield from self._step(now)
        if self.log.ended is not None and not self._pending:
            final = self.form.event(self.log.ended)
            for follower in [each for cohort in self._cohorts for each in cohort.members]:
                follower.finish(final, self.log.ended.reason)

    def fall_behind(self, follower: "Follower") -> None:
        """It goes on by itself from what it has."""
        if (cohort := self._leave_cohort(follower)) is not None:
            self._behind[follower] = None
            follower.seq = self._seq(cohort)

    def has_passed(self, follower: "Follower") -> bool:
        """Whether the log has dropped what it lacks."""
        return follower in self._behind and not self.log.keeps_after(follower.seq)

    def beat(self, cohort: Cohort, now: float) -> None:
        """A heartbeat says where they stand."""
        seq = self._seq(cohort)
        if seq != self._beat_seq:
            self._beat_seq = seq
            position = str(Position(self.log.epoch, seq))
            self._beat = self.frame(self.form.heartbeat(position))
        cohort.wrote_at = now
        self._spread(self._beat, cohort)

    def _seq(self, cohort: Cohort) -> int:
        """Up to here its members have all. What is not for them has passed them by."""
        read = cohort.read - self._past
        return self._pending[read].seq - 1 if read < len(self._pending) else self.log.head.seq

    def _leave_cohort(self, follower: "Follower") -> Cohort | None:
        cohort, follower.cohort = follower.cohort, None
        if cohort is not None:
            del cohort.members[follower]
            if not cohort.members:
                self._cohorts.remove(cohort)
        return cohort

    def _join_cohort(self, follower: "Follower", now: float) -> None:
        """It has all that there is."""
        cohort = min(self._cohorts, key=lambda each: len(each.members), default=None)
        if cohort is None or len(cohort.members) >= TURN_WRITES:
            cohort = Cohort(self, self._past + len(self._pending))
            self._cohorts.append(cohort)
            self._pump.begin(cohort)
        else:
            self._write(cohort, now)
            if not cohort.members:  # all of them have fallen behind by that, or are lost
                self._cohorts.append(cohort)
        cohort.members[follower] = None
        follower.cohort = cohort

    def _write(self, cohort: Cohort, now: float) -> int:
        """What is new to a cohort; how many of it have been written that."""
        here = self._past + len(self._pending)
        if cohort.read == here or not cohort.members:
            return 0
        if self._made is None or self._made[:2] != (cohort.read, here):
            data = self.form.entries(self._pending[cohort.read - self._past :])
            self._made = (cohort.read, here, data, self.frame(data) if data else b"")
        _, _, data, framed = self._made
        try:
            if len(data) > READ_BYTES * len(cohort.members):
                # More than what they would hold by reading on alone, if they took nothing of it.
                for follower in tuple(cohort.members):
                    self.fall_behind(follower)
                self.hurry()
            elif data:
                cohort.wrote_at = now
                self._spread(framed, cohort)
                since = self._pending[cohort.read - self._past].time
                self.metrics.delivered(
                    len(cohort.members), here - cohort.read, len(data), since=since
                )
                return len(cohort.members)
        finally:
            cohort.read = here
        return 0

    def _spread(self, data: bytes, cohort: Cohort) -> None:
        followers = iter(tuple(cohort.members))
        try:
            for follower in followers:
                if follower.outlet.is_blocked:
                    self.fall_behind(follower)
                else:
                    follower.write(data)
        finally:
            # Only after an error are there any left, who have not been written this.
            for follower in followers:
                self.fall_behind(follower)
                self.hurry()

    def _forget_written(self) -> None:
        """What all cohorts have been written."""
        most = self._past + len(self._pending)
        past = min((cohort.read for cohort in self._cohorts), default=most)
        del self._pending[: past - self._past]
        self._past = past
        self._made = None

    def _step(self, now: float) -> Iterator[None]:
        for number, follower in enumerate(tuple(self._behind), 1):
            if follower in self._behind and follower.step():
                self._join_cohort(follower, now)
                # Not before: the last of those whom it joins may be found gone, and it has this channel to itself.
                del self._behind[follower]
            if number % TURN_WRITES == 0:
                yield

    def _on_entry(self, entry: Entry | None) -> None:
        if entry is not None:
            self._pending.append(entry)
        self.hurry()


class Follower:
    """One client."""

    __slots__ = (
        "_begun",
        "_channel",
        "_expired",
        "_final",
        "_in_event",
        "_pieces",
        "_reason",
        "_stall",
        "_unsent",
        "_write_timeout",
        "cohort",
        "outlet",
        "over",
        "seq",
        "tick",
    )

    def __init__(
        self,
        channel: Channel,
        outlet: Outlet,
        beginning: Iterator[Piece],
        seq: int,
        expired: ClosingReason,
        write_timeout: float,
    ) -> None:
        """`expired`: why it ends at its deadline."""
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when nothing more will be written."""
        self.seq = seq
        """What it has, while it lacks something."""
        self.cohort: Cohort | None = None
        """With whom it has all there is for them; None while it lacks something."""
        self.outlet = outlet
        self.tick = 0
        """Of the pump, at which its deadline comes."""
        self._channel = channel
        self._begun = False
        self._pieces: Iterator[Piece] | None = beginning
        """What has been read, or begun with."""
        self._in_event = False
        self._expired = expired
        self._final: bytes | None = None
        self._reason = CLIENT_GONE
        self._write_timeout = write_timeout
        self._stall: asyncio.TimerHandle | None = None
        self._unsent = 0

    @property
    def writes(self) -> int:
        return 1

    def write(self, data: bytes) -> None:
        """Data that is framed. Who cannot be written it is written nothing more: it would miss it."""
        is_written = False
        try:
            self.outlet.write(data)
            is_written = True
        except RuntimeError:
            pass  # uvloop's word for a socket that is closed already, as uvicorn does not always tell
        finally:
            if not is_written:
                self.lost()

    def leave(self, reason: ClosingReason) -> None:
        """Its client is told why as soon as it takes anything, and that is the end."""
        self.finish(self._channel.form.event(closing(reason)), reason)

    def finish(self, final: bytes, reason: ClosingReason) -> None:
        if self._final is None and not self.over.done():
            self._final = final
            self._reason = reason
            if not self._in_event:
                self._pieces = None
            if self._in_event or self.outlet.is_blocked:
                # However slowly it takes the rest, and holds what the log has dropped, it is over then.
                asyncio.get_running_loop().call_later(self._write_timeout, self._drop)
            self._channel.fall_behind(self)
            self._channel.hurry()

    def blocked(self) -> None:
        if self._stall is None:
            self._look_later(STALL_LOOKS)

    def writable(self) -> None:
        self._forget_stall()
        self._channel.hurry()

    def lost(self) -> None:
        """The client is gone."""
        if not self.over.done():
            self._forget_stall()
            self._pieces = None
            self._channel.drop(self)
            self._channel.metrics.event_streams_closed[self._reason] += 1
            self.over.set_result(None)

    def step(self) -> bool:
        """Writes the next piece of what it lacks; whether it has all then."""
        if self.outlet.is_blocked:
            return False
        if self._final is not None and not self._in_event:
            self.write(self._channel.frame(self._final))
            self.lost()
            return False
        try:
            piece, ends_event, _ = self._next_piece()
        except Evicted:
            # Coming back with its last id, the client is told the gap.
            self.leave(ClosingReason.SLOW)
            return False
        self._in_event = not ends_event
        if piece:
            self._begun = True
            self._channel.metrics.delivered_bytes += len(piece)
            self.write(self._channel.frame(piece))
        if self.over.done():
            return False
        if self._pieces is None and self.seq == self._channel.log.head.seq:
            return True
        self._channel.hurry()
        return False

    def _next_piece(self) -> Piece:
        if self._pieces is not None:
            if (piece := next(self._pieces, None)) is not None:
                return self._taken(piece)
            self._pieces = None
        read = self._channel.log.read(self.seq, self._channel.topics)
        self.seq = read.seq
        if not read.entries:
            return _NOTHING
        self._channel.metrics.deliveries += len(read.entries)
        self._pieces = self._channel.form.pieces(read.entries)
        return self._taken(next(self._pieces, _NOTHING))

    def _taken(self, piece: Piece) -> Piece:
        """It has all then, if no more has come meanwhile: who had to look once more would never have, where
        something comes all the time."""
        if piece.is_last:
            self._pieces = None
        return piece

    def tend(self, now: float, heartbeat: float) -> None:
        """Its deadline has come."""
        self.leave(self._expired)

    def _look_later(self, looks: int) -> None:
        self._unsent = self.outlet.unsent()
        self._stall = asyncio.get_running_loop().call_later(
            self._write_timeout / STALL_LOOKS, self._look, looks - 1
        )

    def _look(self, looks: int) -> None:
        """A client that stands still costs its socket and nothing else; a slow one goes on, as long as the log has
        what it lacks."""
        if self._begun and self._final is None and self._channel.has_passed(self):
            self.leave(ClosingReason.SLOW)  # its beginning comes first
        if self.outlet.unsent() < self._unsent:
            self._look_later(STALL_LOOKS)
        elif looks:
            self._look_later(looks)
        else:
            logger.info("A reader of events was dropped: it took nothing for too long.")
            self._reason = STALLED
            self._drop()

    def _drop(self) -> None:
        if not self.over.done():
            self.outlet.abort()
            self.lost()

    def _forget_stall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

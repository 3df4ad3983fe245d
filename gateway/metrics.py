"""What operators count: plain numbers, which the parts that do the work add to, and a scrape reads.

An addition is all that counting costs, once for what is delivered to thousands. Nothing is kept by what
users choose (rooms, identities, topics): each name would be a time series that never ends.
"""

import time
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field

CLIENT_GONE = "client_gone"
"""Why an event stream ended that nobody closed."""

STALLED = "stalled"
"""Why one ended whose client took nothing for too long; it could not be told."""

CONTINUED = "continued"
"""How an event stream came back that lacked nothing; what else there is are the reasons of gaps."""

JOINED = "joined"
"""How a join ended that did not fail."""

COMPLETE = "complete"
"""How an upload ended that was not given up."""

LAG_BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
"""Seconds; one reader is written to within half a millisecond, ten thousand within some fifty."""

JOIN_BOUNDS = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Seconds; 0.05 to 0.2 are usual, and what takes 10 is given up."""


class Histogram:
    """How often something was how large."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """Up to, and including, each bound, and beyond the last; none is in two of them."""
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


@dataclass(slots=True, eq=False)
class Metrics:
    """Of one process, since its start."""

    event_streams_opened: int = 0
    event_streams_closed: Counter[str] = field(default_factory=Counter)
    """By reason: that of `gateway.closing`, CLIENT_GONE or STALLED."""
    event_streams_turned_away: Counter[str] = field(default_factory=Counter)
    """Those that came back and were told to come later, by the reason that they were told."""
    resumes: Counter[str] = field(default_factory=Counter)
    deliveries: int = 0
    delivered_bytes: int = 0
    delivery_lag: Histogram = field(default_factory=lambda: Histogram(LAG_BOUNDS))
    past_events: int = 0
    """Appended to logs that are gone, and so below; those that are there have their own count."""
    past_evicted_events: Counter[str] = field(default_factory=Counter)
    past_gaps: Counter[str] = field(default_factory=Counter)
    texts_sent: int = 0
    texts_incomplete: Counter[str] = field(default_factory=Counter)
    """By the reason that receivers were told."""
    text_bytes: int = 0
    """Of bodies, as they came."""
    turns: Counter[str] = field(default_factory=Counter)
    """Of agents, by what came of them."""
    uploads_ended: Counter[str] = field(default_factory=Counter)
    """COMPLETE, or the reason why not."""
    joins: Counter[str] = field(default_factory=Counter)
    """JOINED, or the code of what kept it from that."""
    join_duration: Histogram = field(default_factory=lambda: Histogram(JOIN_BOUNDS))
    requests: Counter[tuple[str, str, int]] = field(default_factory=Counter)
    """By method, route and status."""

    def delivered(self, followers: int, events: int, size: int, since: float) -> None:
        """Events of so many bytes, the oldest of that time, have been written to each of the followers."""
        if followers:
            self.deliveries += followers * events
            self.delivered_bytes += followers * size
            self.delivery_lag.observe(time.monotonic() - since)

"""What LiveKit Agents write on `lk.transcription`: what users say, and what agents do.

Of a user each result, interim or final, is a stream of its own, which replaces the one before of its segment; what is
final may come more than once. An agent's segment is one stream, which grows, and is final when its trailer says so.
"""

import json
import math
from dataclasses import dataclass

from gateway.events import StreamClosed, StreamOpened

TRANSCRIPTION_TOPIC = "lk.transcription"

SEGMENT_ID = "lk.segment_id"
"""An attribute; a stream without it is a segment of its own."""

FINAL = "lk.transcription_final"
"""Likewise: "true" once no stream of the segment is to follow."""


@dataclass(slots=True, eq=False)
class Segment:
    """Lives for as long as the log keeps a stream of it."""

    participant_identity: str
    segment_id: str
    is_one_stream: bool
    ended: int = 0
    """The sequence number of the event that ended it: what comes after it is of no segment. 0 while it goes on."""
    is_complete: bool = False
    """Whether it ended, and did not break off."""
    streams: int = 0
    """Of those that the log keeps."""

    def goes_on_at(self, seq: int) -> bool:
        """Whether an event of that sequence number is a part of it, its end included."""
        return not self.ended or seq <= self.ended


class Segments:
    """Those of one log, so that each ends once."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str], Segment] = {}

    def begin(self, event: StreamOpened) -> Segment:
        """That which the stream is of. One that broke off, and that its sender takes up again, begins anew:
        else the rest of what was said would be lost."""
        identity = event.participant_identity
        segment_id = (event.attributes or {}).get(SEGMENT_ID)
        if not segment_id:
            return Segment(identity, event.stream_id, is_one_stream=True)
        segment = self._kept.get((identity, segment_id))
        if segment is None or (segment.ended and not segment.is_complete):
            segment = Segment(identity, segment_id, is_one_stream=False)
            self._kept[identity, segment_id] = segment
        segment.streams += 1
        return segment

    def close(self, segment: Segment, event: StreamClosed, seq: int) -> None:
        """A stream of it was closed by the event of that sequence number."""
        is_final = segment.is_one_stream or event.attributes.get(FINAL) == "true"
        if not segment.ended and (is_final or not event.complete):
            segment.ended = seq
            segment.is_complete = event.complete

    def forget(self, segment: Segment) -> None:
        """The log keeps one stream less of it."""
        segment.streams -= 1
        key = segment.participant_identity, segment.segment_id
        if segment.streams <= 0 and self._kept.get(key) is segment:
            del self._kept[key]


_MEMBERS = {"text", "start_time", "end_time", "confidence", "start_time_offset", "speaker_id"}
"""Of a timed string, as LiveKit Agents write one: an agent whose answers are JSON lines has others in them."""


class Folded:
    """The text of a stream, from its first chunk on; of JSON lines of timed strings, what they say.

    Which of the two it is, its first line tells. Until that is whole, a text that may be either is held back.
    """

    __slots__ = ("_is_timed", "_rest", "chunks", "seq", "size", "text", "words")

    def __init__(self) -> None:
        self.chunks = 0
        self.seq = 0
        """Of the last of them."""
        self.size = 0
        """Characters, as they were received."""
        self.text = ""
        self.words: list[str] | None = None
        """Each as JSON, written once however often it is shown; None of what is no timed string."""
        self._is_timed: bool | None = None
        self._rest = ""

    def add(self, text: str, seq: int) -> None:
        self.chunks += 1
        self.seq = seq
        self.size += len(text)
        self._rest += text
        if self._is_timed is None:
            self._is_timed = _is_timed(self._rest)
        if self._is_timed:
            *lines, self._rest = self._rest.split("\n")
            for line in lines:
                self._add_line(line, "\n")
        elif self._is_timed is False:
            self.text += self._rest
            self._rest = ""

    def end(self, *, complete: bool) -> None:
        """No more comes. A timed string that broke off says nothing."""
        if not self._is_timed:
            self.text += self._rest
        elif complete and self._rest:
            self._add_line(self._rest, "")

    def _add_line(self, line: str, end: str) -> None:
        """What is no timed string among them stays as it is: nothing that was said is lost."""
        if self.words is None:
            self.words = []
        if (timed := _timed(line)) is None:
            self.text += line + end
        else:
            text, word = timed
            self.text += text
            self.words.append(word)


def _is_timed(text: str) -> bool | None:
    """By the beginning of a stream; None while that may be either."""
    if text[:2] not in ("", "{", '{"'):
        return False
    line, end, _ = text.partition("\n")
    return _timed(line) is not None if end else None


def _timed(line: str) -> tuple[str, str] | None:
    """What a timed string says, and as a word with its times, in JSON."""
    try:
        told = json.loads(line, parse_int=float)
        if not isinstance(told, dict) or not isinstance(text := told.get("text"), str):
            return None
        text.encode()  # half of a character, which JSON can say, cannot be sent on
    except (ValueError, RecursionError):
        return None
    start, end = told.get("start_time"), told.get("end_time")
    is_ours = told.keys() <= _MEMBERS or start is not None or end is not None
    if not (is_ours and _is_time(start) and _is_time(end)):
        return None
    return text, _json({"text": text, "start_time": start, "end_time": end})


_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def _is_time(told: object) -> bool:
    return told is None or (isinstance(told, float) and math.isfinite(told))

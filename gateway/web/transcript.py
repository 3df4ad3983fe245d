"""`view=transcript`: what is said, segment by segment, made of the streams on `lk.transcription`.

Nothing is remembered for a reader: what an event becomes is told by the log alone, and is the same for all, wherever
they begin. Who reads several events at once is shown the last partial of a segment only: it has what was in those before.
"""

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from json.encoder import encode_basestring

from gateway.event_log import Entry, LoggedStream
from gateway.transcripts import TRANSCRIPTION_TOPIC, Folded, Segment
from gateway.web import frames
from gateway.web.frames import Part

PARTIAL = "transcript.partial"
FINAL = "transcript.final"

PARTIAL_CHARACTERS = 32 * 1024
"""Of a stream, as they were received; once there are more it has no partials: each would repeat them all. Agents say
some hundreds or thousands at once, ten times as many in timed strings."""

TIMED_BYTES = 128 * 1024
"""Of a stream of timed strings, a quarter of an hour of one answer: some 20 ms, while nothing else is done, to read them. A
larger one is shown as it was written."""


def transcripts(entries: Iterable[Entry]) -> Iterator[Iterable[Part]]:
    shown = _shown(entries)
    while shown:
        yield _event(shown.pop())


def _shown(entries: Iterable[Entry]) -> list[Entry]:
    """Those that something is made of, the last first."""
    replaced: set[Segment | LoggedStream] = set()
    shown = []
    for entry in reversed(list(entries)):
        stream = entry.stream
        if entry.topic != TRANSCRIPTION_TOPIC:
            shown.append(entry)
        elif stream is None or stream.segment is None or not stream.segment.goes_on_at(entry.seq):
            continue  # what comes after the end of a segment, or after a beginning that is not known
        elif entry is stream.closed:
            if not stream.is_whole:
                shown.append(entry)  # a gap, which replaces nothing
            elif entry.seq == stream.segment.ended:
                replaced.add(stream.segment)
                shown.append(entry)
        elif entry is not stream.opened and replaced.isdisjoint((stream, stream.segment)):
            # Where this says nothing yet, or is too much, what came before is not looked at.
            replaced.add(stream)
            if _folded(entry, stream) is not None:
                replaced.add(stream.segment)
                shown.append(entry)
    return shown


def _event(entry: Entry) -> Iterable[Part]:
    stream = entry.stream
    if stream is None or stream.segment is None:
        return (entry.frame,)
    if entry is stream.closed:
        return _final(entry, stream, stream.segment)
    folded = _folded(entry, stream)
    if folded is None:
        return ()  # it has been dropped meanwhile
    return (_written(PARTIAL, entry, _header(stream, stream.segment), folded),)


def _final(entry: Entry, stream: LoggedStream, segment: Segment) -> Iterable[Part]:
    position = frames.position(entry.frame).decode()
    if not stream.is_whole:
        return (frames.evicted(stream, position),)
    closed = frames.members(entry)
    header = _header(stream, segment)
    header |= {"complete": closed["complete"], "reason": closed["reason"]}
    if closed["size"] > TIMED_BYTES or not _may_be_timed(stream):
        return frames.with_text(FINAL, header | {"words": None}, stream.chunks, position)
    folded = Folded()
    for chunk in stream.chunks:
        folded.add(_text(chunk), chunk.seq)
    folded.end(complete=closed["complete"])
    return (_written(FINAL, entry, header, folded),)


def _header(stream: LoggedStream, segment: Segment) -> dict[str, object]:
    return {
        "participant_identity": stream.participant_identity,
        "segment_id": segment.segment_id,
        "stream_id": stream.stream_id,
    }


def _written(name: str, entry: Entry, header: dict[str, object], folded: Folded) -> bytes:
    words = "null" if folded.words is None else f"[{','.join(folded.words)}]"
    begun = frames.begun(name, header, frames.position(entry.frame).decode())
    text = encode_basestring(folded.text)[1:-1]
    return b'%b,"words":%b%b%b%b' % (
        begun,
        words.encode(),
        frames.TEXT,
        text.encode(),
        frames.TEXT_END,
    )


def _folded(entry: Entry, stream: LoggedStream) -> Folded | None:
    """What a stream says up to this chunk of it; None where that is nothing yet, too much, or not kept."""
    if not stream.is_whole:
        return None
    folded = stream.folded
    if folded is None or folded.seq > entry.seq:
        folded = Folded()  # for one who is behind the others, or the first
    for chunk in islice(stream.chunks, folded.chunks, None):
        if chunk.seq > entry.seq or folded.size > PARTIAL_CHARACTERS:
            break
        folded.add(_text(chunk), chunk.seq)
    if stream.closed is None and (stream.folded is None or stream.folded.seq < folded.seq):
        stream.folded = folded
    return folded if folded.text and folded.size <= PARTIAL_CHARACTERS else None


def _may_be_timed(stream: LoggedStream) -> bool:
    return bool(stream.chunks) and bytes(frames.text(stream.chunks[0])[:1]) in (b"", b"{")


def _text(chunk: Entry) -> str:
    text: str = json.loads(b'"%b"' % bytes(frames.text(chunk)))
    return text

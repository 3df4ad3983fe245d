"""One text stream as it is told: what came of it so far, for its next piece and for its end."""

from collections.abc import Mapping
from dataclasses import dataclass

from gateway.events import StreamChunk, StreamClosed, StreamOpened


@dataclass(slots=True)
class StreamTally:
    opened: StreamOpened
    chunks: int = 0
    size: int = 0
    """Bytes of UTF-8."""

    def chunk(self, text: str) -> StreamChunk:
        """The event of its next piece, which is counted."""
        opened = self.opened
        event = StreamChunk(
            opened.stream_id, opened.topic, opened.participant_identity, self.chunks, text
        )
        self.chunks += 1
        self.size += len(text.encode())
        return event

    def closed(
        self, reason: str | None, attributes: Mapping[str, str] | None = None
    ) -> StreamClosed:
        """The event of its end, whole where there is no reason why it is not. `attributes`: all that it
        has by then, where that is more than it began with."""
        opened = self.opened
        return StreamClosed(
            stream_id=opened.stream_id,
            topic=opened.topic,
            participant_identity=opened.participant_identity,
            complete=reason is None,
            reason=reason,
            attributes=(opened.attributes or {}) if attributes is None else attributes,
            size=self.size,
            chunks=self.chunks,
        )

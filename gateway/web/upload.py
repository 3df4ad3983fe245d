"""One text whose body comes in several requests, and all of them that this process has.

By the IETF draft "Resumable Uploads for HTTP" as its version 05 has it (interop version 6). An upload
counts the bytes of its body; what is left of a character, a line or a compressed block at the end of one
request waits for the next.
"""

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import ClientDisconnect

from gateway.auth import Caller
from gateway.errors import (
    BodyIdle,
    LengthMismatch,
    OffsetMismatch,
    Unavailable,
    UploadComplete,
    UploadEnded,
    UploadInterrupted,
    UploadNotFound,
)
from gateway.hub import Hub
from gateway.metrics import COMPLETE
from gateway.outgoing import Sent
from gateway.web.reading import RECHECK, BodyReader, Interruption, Wake
from gateway.web.writing import Gone, Writing, reason_of

ID_BYTES = 16
"""128 random bits: nobody guesses one."""

REMEMBERED = 300.0
"""Seconds that an upload which is over is remembered, for a client that did not get the last answer."""

MAX_REMEMBERED = 10_000
"""The oldest go first; about 1 KB each."""

IDLE = "upload_idle"
"""The reason of a text whose upload nobody went on with."""

EXPIRED = "token_expired"
"""The reason of one whose sender did not come with a newer token in time."""

CANCELLED = "cancelled"

_MAY_GO_ON = (BodyIdle, LengthMismatch, UploadInterrupted, ClientDisconnect)
"""What is wrong with one request, and not with the upload."""


class Upload:
    """One upload, from its first request to its end. Its requests come one at a time: the newest counts."""

    def __init__(self, caller: Caller, writing: Writing, length: int | None, idle: float) -> None:
        """`length`: of the whole body, in bytes, where its sender has said. `idle`: seconds between two
        requests after which it is given up."""
        self.id = secrets.token_urlsafe(ID_BYTES)
        self.owner = (caller.room, caller.identity)
        self.offset = 0
        self.length = length
        self.limit = writing.limit
        self.sent: Sent | None = None
        """What is said of the text, once it is complete."""
        self._writing: Writing | None = writing
        self._idle = idle
        self._expires_at = caller.expires_at
        self._touched = time.monotonic()
        self._ended: str | None = None
        self._changed = asyncio.Event()
        self._finishing = False
        self._alone = asyncio.Lock()
        self._waiting = 0
        self._wakes: set[Wake] = set()
        self._interruption = Interruption(self._watch, self._wakes.discard, self._require_newest)

    @property
    def is_over(self) -> bool:
        return self._writing is None

    @property
    def outcome(self) -> str | None:
        """How it ended, once it is over."""
        return COMPLETE if self.sent is not None else self._ended

    @property
    def begun(self) -> Sent | None:
        """What is said of the text while it is being written."""
        return None if self._writing is None else self._writing.begun

    @property
    def expires_in(self) -> float:
        """Seconds until it is given up, unless somebody goes on with it."""
        idle = self._touched + self._idle - time.monotonic()
        return max(0.0, min(idle, self._expires_at - time.time()))

    async def append(
        self,
        reader: BodyReader,
        caller: Caller,
        offset: int,
        *,
        complete: bool | None,
        length: int | None = None,
        gone: Gone = None,
    ) -> Sent | None:
        """Goes on at `offset` with what `reader` reads; to the end of the text if it is `complete`, or if its
        length in bytes, said here or before, is reached.

        Raises OffsetMismatch, LengthMismatch, BodyIdle, UploadInterrupted and starlette's ClientDisconnect,
        after which it may be gone on with; UploadComplete and UploadEnded; and what ends it: what is wrong
        with the body, and what sending raises.
        """
        async with self.taken_over():
            if offset != self.offset:
                # Also where it is complete: browsers make a request again by themselves whose answer was
                # lost, and whoever made it the first time is to ask, and learn that all has arrived.
                raise OffsetMismatch(self.offset, offset)
            if self._writing is None:
                return await self._sent_again(reader, complete)
            self._record(length)
            self._finishing = False
            if caller.expires_at > self._expires_at:
                self._expires_at = caller.expires_at
                self._writing.renew(caller)
            try:
                await self._read(reader, self._writing)
                # tus-js-client does not say of the last part of a stream that it is the last, and takes an
                # offset that is the length for its success.
                if complete or self.offset == self.length:
                    await self._finish(self._writing, gone)
                else:
                    await self._writing.open()
            except BaseException as error:
                if not self._may_go_on_after(error):
                    await self.end(reason_of(error))
                raise
            finally:
                self._touched = time.monotonic()
                self._changed.set()
            return self.sent

    @asynccontextmanager
    async def taken_over(self) -> AsyncIterator[None]:
        """Alone with it: a request that is appending is interrupted, between two pieces of its body. It
        may be one whose connection broke without our having noticed.

        Raises UploadEnded where it has ended before it was whole.
        """
        self._waiting += 1
        for wake in tuple(self._wakes):
            wake()
        try:
            await self._alone.acquire()
        finally:
            self._waiting -= 1
        try:
            if self._writing is not None and self._writing.broken is not None:
                await self.end(self._writing.broken)
            if self._ended is not None:
                raise UploadEnded(
                    f"The upload has ended ({self._ended}); the text is not complete in the room."
                )
            yield
        finally:
            self._alone.release()

    async def cancel(self) -> None:
        """It is not to be complete. Does nothing if it is cancelled; raises UploadComplete and UploadEnded."""
        try:
            async with self.taken_over():
                self.require_incomplete()
                await self.end(CANCELLED)
        except UploadEnded:
            # Its sender, who did not get the answer, tries again.
            if self._ended != CANCELLED:
                raise

    async def end(self, reason: str) -> None:
        """It is not to be complete, unless it is. To be called by who is alone with it."""
        writing, self._writing = self._writing, None
        if writing is not None:
            self._ended = reason
            self._changed.set()
            try:
                await writing.abort(reason)
            finally:
                await writing.aclose()

    async def until_over(self) -> None:
        """Returns when it is over; ends it if nobody goes on with it, or nobody whose token is good, and when
        what it is written to has ended."""
        while (writing := self._writing) is not None:
            self._changed.clear()
            writing.interruption.watch(self._changed.set)
            try:
                async with asyncio.timeout(min(self.expires_in, RECHECK)):
                    await self._changed.wait()
            except TimeoutError:
                pass  # time for a look
            finally:
                writing.interruption.unwatch(self._changed.set)
            async with self._alone:
                if writing.broken is not None:
                    await self.end(writing.broken)
                elif not self.expires_in:
                    await self.end(EXPIRED if time.time() >= self._expires_at else IDLE)

    def require_incomplete(self) -> None:
        """Raises UploadComplete."""
        if self.sent is not None:
            raise UploadComplete("The upload is complete, and its text in the room; it is over.")

    def _record(self, length: int | None) -> None:
        if length is None:
            return
        if length < self.offset or self.length not in (None, length):
            raise LengthMismatch(
                f"A length of {length} bytes does not fit: the upload has {self.offset} already"
                + ("." if self.length is None else f", and its length is {self.length}.")
            )
        self.length = length

    async def _read(self, reader: BodyReader, writing: Writing) -> None:
        while (data := await reader.next(writing.interruption, self._interruption)) is not None:
            over = 0 if self.length is None else max(0, self.offset + len(data) - self.length)
            taken = data[: len(data) - over]
            await writing.feed(taken)
            self.offset += len(taken)
            self._touched = time.monotonic()
            if over:
                raise LengthMismatch(f"The upload has more bytes than its length, {self.length}.")

    async def _finish(self, writing: Writing, gone: Gone) -> None:
        if self.length not in (None, self.offset):
            raise LengthMismatch(
                f"The upload has {self.offset} bytes, and was to have {self.length}."
            )
        self._finishing = True
        self.sent = await writing.finish(gone)
        self.length = self.offset
        self._writing = None
        await writing.aclose()

    async def _sent_again(self, reader: BodyReader, complete: bool | None) -> Sent | None:
        """The answer of a last request that has come again with nothing to add: its sender did not get it."""
        if complete is False or await reader.next(self._interruption) is not None:
            self.require_incomplete()
        return self.sent

    def _may_go_on_after(self, error: BaseException) -> bool:
        if isinstance(error, _MAY_GO_ON):
            return True
        # All of it has been read, and nobody has seen anything of it: the last request may be made again.
        nothing_sent = self._writing is not None and not self._writing.has_begun
        return isinstance(error, Unavailable) and self._finishing and nothing_sent

    def _watch(self, wake: Wake) -> None:
        self._wakes.add(wake)
        if self._waiting:
            wake()

    def _require_newest(self) -> None:
        if self._waiting:
            raise UploadInterrupted("Another request for this upload came; ask for its offset.")


class Uploads:
    """Those that are under way, and for a while those that are over."""

    def __init__(self, hub: Hub, idle: float) -> None:
        """`idle`: seconds between two requests for an upload after which it is given up."""
        self._idle = idle
        self._metrics = hub.metrics
        self._known: dict[str, Upload] = {}
        self._over: OrderedDict[str, float] = OrderedDict()
        self._watching: set[asyncio.Task[None]] = set()
        # What the uploads write ends with the connections that carry them.
        hub.watch_drain(self._stop_watching)

    @property
    def under_way(self) -> int:
        return len(self._watching)

    def add(self, caller: Caller, writing: Writing, length: int | None) -> Upload:
        self._forget_old()
        upload = Upload(caller, writing, length, self._idle)
        self._known[upload.id] = upload
        task = asyncio.create_task(self._watch(upload))
        self._watching.add(task)
        task.add_done_callback(self._watching.discard)
        return upload

    def find(self, caller: Caller, upload_id: str) -> Upload:
        """Raises UploadNotFound, also for the upload of another: nobody learns that it exists."""
        self._forget_old()
        upload = self._known.get(upload_id)
        if upload is None or upload.owner != (caller.room, caller.identity):
            raise UploadNotFound(
                "There is no such upload of this participant: it was never begun, or is long over."
            )
        return upload

    async def _watch(self, upload: Upload) -> None:
        try:
            await upload.until_over()
        finally:
            if upload.outcome is not None:
                self._metrics.uploads_ended[upload.outcome] += 1
            self._over[upload.id] = time.monotonic() + REMEMBERED
            if len(self._over) > MAX_REMEMBERED:
                self._known.pop(self._over.popitem(last=False)[0])

    def _forget_old(self) -> None:
        now = time.monotonic()
        while self._over and next(iter(self._over.values())) <= now:
            self._known.pop(self._over.popitem(last=False)[0])

    def _stop_watching(self) -> None:
        for task in tuple(self._watching):
            task.cancel()

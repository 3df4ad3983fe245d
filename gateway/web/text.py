"""POST /rooms/{room}/text: one request body is one LiveKit text stream."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.auth import Caller, TokenVerifier
from gateway.hub import Hub
from gateway.idempotency import Attempt, IdempotencyKeys, Owner
from gateway.outgoing import Sent
from gateway.settings import Settings
from gateway.web.answer import Answer, accepted, unread
from gateway.web.body import BodyForm, body_form, too_large
from gateway.web.options import QUERY_NAMES, fingerprint, query_options
from gateway.web.parameters import (
    ATTRIBUTE_PREFIX,
    Query,
    authenticate,
    count_header,
    flag_header,
    header_values,
    idempotency_key,
)
from gateway.web.reading import (
    BodyReader,
    See,
    content_length,
    disconnected,
    drain_of,
    is_chunked,
)
from gateway.web.uploads import COMPLETE, LENGTH, UploadsEndpoint
from gateway.web.writing import Writing, Writings, reason_of


class TextEndpoint:
    def __init__(
        self,
        hub: Hub,
        writings: Writings,
        uploads: UploadsEndpoint,
        verifier: TokenVerifier,
        settings: Settings,
    ) -> None:
        self._hub = hub
        self._writings = writings
        self._uploads = uploads
        self._verifier = verifier
        self._settings = settings
        self._keys: IdempotencyKeys[Answer] = IdempotencyKeys()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = await self._handle(Request(scope, receive))
        await answer(scope, receive, send)

    async def _handle(self, request: Request) -> ASGIApp:
        if request.method == "OPTIONS":
            return self._uploads.limits()
        try:
            return await self._answer(request)
        except ClientDisconnect:
            return unread()

    async def _answer(self, request: Request) -> Answer:
        query = Query(request, QUERY_NAMES, prefix=ATTRIBUTE_PREFIX)
        caller = authenticate(request, query, self._verifier)
        caller.require_can_publish_data()
        options = query_options(query)
        complete = flag_header(request, COMPLETE)
        form = body_form(request, partial=complete is not None)
        send = partial(self._send, request, caller, form, options, complete)
        key = idempotency_key(request)
        if key is None:
            return await send(None)
        # An upload may begin with none of its text: then its length is all that tells it from another.
        length = None if complete is None else count_header(request, LENGTH)
        asked = fingerprint(options, form.media_type, form.compressed, complete, length)
        with self._keys.attempt(Owner(caller.room, caller.identity), key, asked) as attempt:
            if attempt.is_repeated:
                return await self._first_answer(request, caller, attempt)
            answer = await send(attempt.see)
            attempt.succeed(answer)
            return answer

    async def _first_answer(
        self, request: Request, caller: Caller, attempt: Attempt[Answer]
    ) -> Answer:
        """Once it is known that this is the same text."""
        reader = BodyReader(request, caller, self._settings.body_idle_timeout, attempt.see)
        draining = drain_of(self._hub)
        while await reader.next(draining) is not None:
            pass
        return attempt.first_answer()

    async def _send(
        self,
        request: Request,
        caller: Caller,
        form: BodyForm,
        options: Mapping[str, Any],
        complete: bool | None,
        see: See,
    ) -> Answer:
        if complete is not None:
            return await self._uploads.create(
                request, caller, form, options, complete=complete, see=see
            )
        length = content_length(request)
        whole = not is_chunked(request)
        limit = self._writings.limit(form, whole=whole)
        if length is not None and length > limit:
            raise too_large(limit)
        # Who asks first whether it may send is told before it has sent.
        asks = bool(header_values(request, "expect"))
        writing = await self._writings.begin(form, options, caller, whole=whole, asks=asks)
        try:
            reader = BodyReader(request, caller, self._settings.body_idle_timeout, see)
            return accepted(await self._write(request, writing, reader), 200, {})
        finally:
            await writing.aclose()

    async def _write(self, request: Request, writing: Writing, reader: BodyReader) -> Sent:
        try:
            while (data := await reader.next(writing.interruption)) is not None:
                await writing.feed(data)
            return await writing.finish(lambda: disconnected(request))
        except BaseException as error:
            await writing.abort(reason_of(error))
            raise

"""/rooms/{room}/uploads/{upload_id}: to go on with an upload, to ask where it stands, to cancel it."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp

from gateway.auth import Caller, TokenVerifier
from gateway.errors import GatewayError, InvalidParameter, LengthMismatch, UnsupportedMediaType
from gateway.settings import Settings
from gateway.web import problems
from gateway.web.answer import Answer, accepted, unread
from gateway.web.body import PARTIAL, BodyForm, too_large
from gateway.web.parameters import Query, authenticate, count_header, flag_header, header_values
from gateway.web.reading import BodyReader, See, content_length, disconnected
from gateway.web.upload import Upload, Uploads
from gateway.web.writing import Writings, reason_of

OFFSET, COMPLETE, LENGTH, LIMIT = (
    "Upload-Offset",
    "Upload-Complete",
    "Upload-Length",
    "Upload-Limit",
)


class UploadsEndpoint:
    def __init__(
        self, uploads: Uploads, writings: Writings, verifier: TokenVerifier, settings: Settings
    ) -> None:
        self._uploads = uploads
        self._writings = writings
        self._verifier = verifier
        self._settings = settings

    async def create(
        self,
        request: Request,
        caller: Caller,
        form: BodyForm,
        options: Mapping[str, Any],
        *,
        complete: bool,
        see: See,
    ) -> Answer:
        """The first request, a POST of a text; it may be the last one as well.

        Its sender learns by the answer alone where to go on: what breaks off before is over.
        """
        length = _declared_length(request, 0, complete=complete)
        # tus-js-client makes no second request for an empty file, and never says that it is complete.
        complete = complete or length == 0
        whole = complete and self._is_short(request)
        limit = self._writings.limit(form, whole=whole)
        if length is not None and length > limit:
            raise too_large(limit)
        asks = bool(header_values(request, "expect"))
        writing = await self._writings.begin(
            form, options, caller, whole=whole, lasts=True, asks=asks
        )
        upload = self._uploads.add(caller, writing, length)
        try:
            reader = BodyReader(request, caller, self._settings.body_idle_timeout, see)
            sent = await upload.append(
                reader, caller, 0, complete=complete, gone=lambda: disconnected(request)
            )
        except BaseException as error:
            await upload.end(reason_of(error))
            raise
        location = {"Location": f"/rooms/{quote(caller.room, safe='')}/uploads/{upload.id}"}
        if sent is None:
            return accepted(upload.begun, 201, location | _headers(upload))
        return accepted(sent, 200, location | _headers(upload))

    async def change(self, request: Request) -> ASGIApp:
        """HEAD, PATCH and DELETE of one upload. Every answer says where it stands."""
        caller = authenticate(request, Query(request, ()), self._verifier)
        upload = self._uploads.find(caller, request.path_params["upload_id"])
        try:
            match request.method:
                case "HEAD":
                    answer = await self._head(request, upload)
                case "PATCH":
                    answer = await self._patch(request, caller, upload)
                case _:
                    answer = await self._delete(request, upload)
        except ClientDisconnect:
            return unread()
        except GatewayError as error:
            response = problems.on_gateway_error(error)
            response.headers.update(_headers(upload))
            return response
        return answer

    def limits(self) -> Response:
        """What the draft has a client ask before it begins."""
        limit = f"max-size={self._settings.max_stream_bytes}"
        return Response(status_code=204, headers={LIMIT: limit, "Allow": "POST, OPTIONS"})

    async def _head(self, request: Request, upload: Upload) -> Answer:
        _require_none(request, OFFSET, COMPLETE, LENGTH)
        async with upload.taken_over():
            headers = _headers(upload)
            # Where all of it is here, and could not be sent yet, without the length: tus-js-client looks at
            # the two alone, and would take it for a success. So it makes its last request again.
            if upload.length is not None and (upload.sent or upload.offset < upload.length):
                headers[LENGTH] = str(upload.length)
            return Answer(204, headers=headers)

    async def _patch(self, request: Request, caller: Caller, upload: Upload) -> Answer:
        caller.require_can_publish_data()
        # A client that sets headers for all of its requests may have given the type of the whole before.
        media_type = ",".join(header_values(request, "content-type")).rpartition(",")[2].strip()
        if media_type.lower() != PARTIAL:
            raise UnsupportedMediaType(f"A part of an upload is sent as 'Content-Type: {PARTIAL}'.")
        offset = count_header(request, OFFSET)
        if offset is None:
            raise InvalidParameter(f"The header {OFFSET!r} is missing: where does this part begin?")
        complete = flag_header(request, COMPLETE)
        length = _declared_length(request, offset, complete=complete is True)
        if length is not None and length > upload.limit:
            raise too_large(upload.limit)
        reader = BodyReader(request, caller, self._settings.body_idle_timeout)
        sent = await upload.append(
            reader,
            caller,
            offset,
            complete=complete,
            length=length,
            gone=lambda: disconnected(request),
        )
        if sent is None:
            return Answer(201, headers=_headers(upload))
        return accepted(sent, 200, _headers(upload))

    async def _delete(self, request: Request, upload: Upload) -> Answer:
        _require_none(request, OFFSET, COMPLETE)
        await upload.cancel()
        return Answer(204, headers=_headers(upload))

    def _is_short(self, request: Request) -> bool:
        """Whether it is sent whole, as it would be without the headers of an upload."""
        length = content_length(request)
        return length is not None and length <= self._settings.max_text_bytes


def _declared_length(request: Request, offset: int, *, complete: bool) -> int | None:
    """Of the whole body, in bytes, as far as the request says it. Raises LengthMismatch."""
    length = count_header(request, LENGTH)
    part = content_length(request)
    if part is not None and complete:
        if length not in (None, offset + part):
            raise LengthMismatch(
                f"The upload is to have {length} bytes, and this last part ends at {offset + part}."
            )
        return offset + part
    return length


def _require_none(request: Request, *names: str) -> None:
    for name in names:
        if header_values(request, name):
            raise InvalidParameter(f"The header {name!r} has no meaning in a {request.method}.")


def _headers(upload: Upload) -> dict[str, str]:
    """Where the upload stands."""
    headers = {
        OFFSET: str(upload.offset),
        COMPLETE: "?1" if upload.sent is not None else "?0",
        "Cache-Control": "no-store",
    }
    if not upload.is_over:
        headers[LIMIT] = f"max-size={upload.limit}, expires={int(upload.expires_in)}"
    return headers

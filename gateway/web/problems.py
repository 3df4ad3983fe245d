"""Our errors as HTTP answers: RFC 9457 problem details, with a stable `code`.

The only table from what happened to which status.
"""

import json
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway import errors
from gateway.errors import GatewayError

MEDIA_TYPE = "application/problem+json"

STATUSES: Mapping[type[GatewayError], HTTPStatus] = {
    errors.InvalidRequest: HTTPStatus.BAD_REQUEST,
    errors.BodyTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    errors.HeaderTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    errors.UnsupportedMediaType: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    errors.UnsupportedEncoding: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    errors.NotAcceptable: HTTPStatus.NOT_ACCEPTABLE,
    errors.ExpectationFailed: HTTPStatus.EXPECTATION_FAILED,
    errors.BodyIdle: HTTPStatus.REQUEST_TIMEOUT,
    errors.OffsetMismatch: HTTPStatus.CONFLICT,
    errors.IdempotencyKeyReused: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.Unauthenticated: HTTPStatus.UNAUTHORIZED,
    errors.Forbidden: HTTPStatus.FORBIDDEN,
    errors.NotThere: HTTPStatus.NOT_FOUND,
    errors.Conflict: HTTPStatus.CONFLICT,
    errors.NotSupported: HTTPStatus.NOT_IMPLEMENTED,
    errors.Unavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.TooManyRooms: HTTPStatus.TOO_MANY_REQUESTS,
    errors.AgentUnavailable: HTTPStatus.GATEWAY_TIMEOUT,
    errors.NotAccepted: HTTPStatus.GATEWAY_TIMEOUT,
    errors.AgentDidNotAnswer: HTTPStatus.GATEWAY_TIMEOUT,
    errors.TurnTimedOut: HTTPStatus.GATEWAY_TIMEOUT,
    errors.TooManyTurns: HTTPStatus.TOO_MANY_REQUESTS,
    errors.TooManyTopics: HTTPStatus.TOO_MANY_REQUESTS,
    errors.TooManyOpenStreams: HTTPStatus.TOO_MANY_REQUESTS,
    errors.TooManyBodies: HTTPStatus.TOO_MANY_REQUESTS,
    errors.TooManyIdempotencyKeys: HTTPStatus.TOO_MANY_REQUESTS,
}
"""The nearest class among an error's ancestors decides."""

_REASONS = {413: "Content Too Large"}
"""Where RFC 9110 has a newer name than Python 3.11."""

_PROBLEM_TYPES = "https://iana.org/assignments/http-problem-types"

CHALLENGE = 'Bearer realm="livekit"'

_CHALLENGES: Mapping[type[GatewayError], str] = {
    # RFC 6750, 3.1: a request without any credentials is told no error code.
    errors.TokenMissing: CHALLENGE,
    errors.TokenInvalid: f'{CHALLENGE}, error="invalid_token"',
    errors.TokenExpired: f'{CHALLENGE}, error="invalid_token"',
    errors.WebhookInvalid: f'{CHALLENGE}, error="invalid_token"',
    errors.Forbidden: f'{CHALLENGE}, error="insufficient_scope"',
}


def problem(
    status: int,
    code: str,
    detail: str,
    headers: Mapping[str, str] | None = None,
    members: Mapping[str, Any] | None = None,
) -> Response:
    return Response(
        body(status, code, detail, members),
        status,
        {"Cache-Control": "no-store"} | dict(headers or {}),
        MEDIA_TYPE,
    )


def body(status: int, code: str, detail: str, members: Mapping[str, Any] | None = None) -> bytes:
    """`members`: beside those that every problem has, or in their place."""
    told = {
        "type": "about:blank",
        "title": _REASONS.get(status) or HTTPStatus(status).phrase,
        "status": status,
        "code": code,
        "detail": detail,
        **(members or {}),
    }
    return f"{json.dumps(told, ensure_ascii=False)}\n".encode()


def status_of(kind: type[GatewayError]) -> HTTPStatus:
    return next(STATUSES[ancestor] for ancestor in kind.__mro__ if ancestor in STATUSES)


def on_gateway_error(error: GatewayError) -> Response:
    headers = {}
    for kind, challenge in _CHALLENGES.items():
        if isinstance(error, kind):
            headers["WWW-Authenticate"] = _described(challenge, error)
    if isinstance(error, errors.Unavailable):
        headers["Retry-After"] = str(error.retry_after)
    if isinstance(error, errors.UnsupportedEncoding):
        headers["Accept-Encoding"] = "gzip"  # RFC 9110, 12.5.3
    return problem(status_of(type(error)), error.code, error.detail, headers, _extensions(error))


def _extensions(error: GatewayError) -> dict[str, Any]:
    """The draft of resumable uploads registers two problem types, the first with members of its own."""
    match error:
        case errors.OffsetMismatch():
            return {
                "type": f"{_PROBLEM_TYPES}#mismatching-upload-offset",
                "expected-offset": error.expected,
                "provided-offset": error.provided,
            }
        case errors.UploadComplete():
            return {"type": f"{_PROBLEM_TYPES}#completed-upload"}
        case _:
            return {}


def _described(challenge: str, error: GatewayError) -> str:
    if "error=" not in challenge:
        return challenge
    # RFC 6750, 3: of ASCII without controls, double quote and backslash; names in it may have all.
    description = re.sub(r"[^ !#-\[\]-~]", "'", error.detail)
    return f'{challenge}, error_description="{description}"'


NOT_FOUND = (
    "There is nothing at this path. To send, POST /rooms/{room}/text; to read, GET"
    " /rooms/{room}/topics/{topic}/events; GET /openapi.yaml has all."
)


def on_http_error(scope: Scope, error: HTTPException) -> Response:
    """What starlette's router refuses."""
    if error.status_code == HTTPStatus.NOT_FOUND:
        return problem(404, "not_found", NOT_FOUND)
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = (error.headers or {}).get("Allow", "")
        detail = f"This path does not take {scope['method']}; it takes {allowed}."
        return problem(405, "method_not_allowed", detail, error.headers)
    return problem(error.status_code, "http_error", error.detail, error.headers)


def unexpected() -> Response:
    """A defect of ours; the log has its traceback, the caller learns nothing of it."""
    return problem(500, "internal_error", "The gateway failed; its log says how.")


class Problems:
    """Answers with what an app raises; one that has begun to answer ends as with any other error."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self  # else starlette's router answers by itself what it refuses
        try:
            await self._app(scope, receive, send)
        except GatewayError as error:
            # One error may end many requests, and would gather their tracebacks.
            error.__traceback__ = None
            await on_gateway_error(error)(scope, receive, send)
        except HTTPException as error:
            await on_http_error(scope, error)(scope, receive, send)

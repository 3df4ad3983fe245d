"""The answer to a text that LiveKit has accepted."""

import json
from dataclasses import dataclass, field
from http import HTTPStatus

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.outgoing import Sent


@dataclass(frozen=True, slots=True)
class Answer:
    """A response that can be given again."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Gives it, as starlette's Response does, which works its headers out each time."""
        headers = [
            (name.lower().encode("latin-1"), value.encode("latin-1"))
            for name, value in ({"Cache-Control": "no-store"} | self.headers).items()
        ]
        if self.status != HTTPStatus.NO_CONTENT:
            headers.append((b"content-length", b"%d" % len(self.body)))
        if self.body:
            headers.append((b"content-type", b"application/json"))
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


def unread() -> Response:
    """The client has gone; the access log shows it, with the number that nginx made customary."""
    return Response(status_code=499)


def accepted(sent: Sent | None, status: int, headers: dict[str, str]) -> Answer:
    if sent is None:
        return Answer(status, headers=headers)
    return Answer(status, f"{json.dumps(sent._asdict())}\n".encode(), headers)

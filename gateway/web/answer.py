"""The answer to a text that LiveKit has accepted."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from starlette.responses import Response

from gateway.outgoing import Sent

SENT_MEMBERS = tuple(member.name for member in fields(Sent))


@dataclass(frozen=True, slots=True)
class Answer:
    """A response that can be given again."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    def response(self) -> Response:
        return Response(
            self.body,
            self.status,
            {"Cache-Control": "no-store", **self.headers},
            media_type="application/json" if self.body else None,
        )


def unread() -> Response:
    """The client has gone; the access log shows it, with the number that nginx made customary."""
    return Response(status_code=499)


def accepted(sent: Sent | None, status: int, headers: Mapping[str, str]) -> Answer:
    if sent is None:
        return Answer(status, headers=headers)
    told = json.dumps({name: getattr(sent, name) for name in SENT_MEMBERS})
    return Answer(status, f"{told}\n".encode(), headers)

"""`Expect: 100-continue`: who asks before sending a body is answered before it is sent."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.errors import ExpectationFailed, shown
from gateway.web import problems

CONTINUE = b"100-continue"
"""The one expectation there is (RFC 9110, 10.1.1); the server says 100 when the body is first asked for."""


class Expectation:
    """Refuses others, and ends the connection after an answer before the body: whether its sender goes on
    to send it, nobody could tell from the next request."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        expected = [value.lower() for name, value in scope["headers"] if name == b"expect"]
        if not expected:
            await self._app(scope, receive, send)
        elif expected != [CONTINUE]:
            given = shown(b", ".join(expected).decode("latin-1"))
            error = ExpectationFailed(f"Expect {given} is not supported; only 100-continue is.")
            response = problems.problem(417, error.code, error.detail, {"Connection": "close"})
            await response(scope, receive, send)
        else:
            await self._watched(scope, receive, send)

    async def _watched(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = False

        async def ask() -> Message:
            nonlocal asked
            asked = True
            return await receive()

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start" and not asked:
                message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        await self._app(scope, ask, answer)

"""`python -m benchmarks.bare_sse PORT`: what a stock `EventSourceResponse` costs that has nothing to say."""

import asyncio
import sys
from collections.abc import AsyncGenerator

import uvicorn
from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from benchmarks import machine


async def _nothing() -> AsyncGenerator[str]:
    yield "hello"
    await asyncio.Event().wait()


async def events(request: Request) -> Response:
    return EventSourceResponse(_nothing())


if __name__ == "__main__":
    machine.allow_many_files()
    app = Starlette(routes=[Route("/events", events)])
    uvicorn.run(
        app, port=int(sys.argv[1]), log_level="warning", loop="uvloop", http="httptools", ws="none"
    )

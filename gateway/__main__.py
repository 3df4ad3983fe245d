"""`python -m gateway` serves; `python -m gateway token` prints a token. Names the concrete parts."""

import argparse
import asyncio
import contextlib
import logging
import os
import re
import signal
import socket
import sys
import warnings
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta

import uvicorn
from jwt.warnings import InsecureKeyLengthWarning

from gateway import __version__
from gateway.errors import JoinFailed, LiveKitUnavailable
from gateway.event_log import EventLog
from gateway.hub import Hub
from gateway.logs import configure_logging
from gateway.rooms.base import Rooms
from gateway.rooms.livekit import LiveKitRooms
from gateway.rooms.tokens import mint
from gateway.settings import Settings, SettingsError, read_settings
from gateway.web import sse
from gateway.web.app import make_app

logger = logging.getLogger("gateway")

BACKLOG = 2_048
"""Connections that the kernel holds while we are busy: a deploy brings all clients back at once."""

KEEP_ALIVE = 75
"""Seconds an idle HTTP connection is kept; longer than the 60 of nginx and common load balancers, so
that it is them who close it and no request meets a closing socket."""

DEFAULT_TTL = "6h"
"""LiveKit's own default for tokens."""


class Server(uvicorn.Server):
    """uvicorn, drained before it stops: it would wait for event streams, which do not end by themselves."""

    def __init__(self, config: uvicorn.Config, drain: Callable[[], Awaitable[None]]) -> None:
        super().__init__(config)
        self._drain = drain

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT end `serve`, and then the process with status 0: uvicorn's own way ends
        in dying of the signal, which looks like a crash to whoever watches."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._drain()
        await super().shutdown(sockets)


def make_hub(rooms: Rooms, settings: Settings) -> Hub:
    return Hub(
        rooms,
        lambda: EventLog(sse.encode, settings.log_bounds),
        topics=settings.topics,
        linger=settings.linger,
        max_connections=settings.max_connections,
    )


def make_server(hub: Hub, settings: Settings) -> Server:
    async def drain() -> None:
        logger.info("Draining: leaving LiveKit and ending event streams.")
        try:
            async with asyncio.timeout(settings.drain_timeout):
                await hub.drain()
        except TimeoutError:
            logger.warning("Not all connections were left within %g s.", settings.drain_timeout)

    config = uvicorn.Config(
        make_app(hub, settings),
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=max(1, round(settings.drain_timeout)),
    )
    return Server(config, drain)


async def serve(settings: Settings, listening: socket.socket) -> None:
    """Serves until SIGTERM or SIGINT, then drains and returns. Raises JoinFailed at a wrong API key."""
    rooms = LiveKitRooms(
        settings.livekit_url,
        settings.livekit_api_key,
        settings.livekit_api_secret,
        max_stream_bytes=settings.max_stream_bytes,
    )
    server = make_server(make_hub(rooms, settings), settings)
    # Beside serving, not before it: a server that does not answer would hold up the start, and with
    # it our answer to SIGTERM, which process 1 of a container otherwise ignores.
    checking = asyncio.create_task(_check(rooms, server))
    try:
        host, port = listening.getsockname()[:2]
        logger.info("Version %s listens on %s port %d.", __version__, host, port)
        await server.serve(sockets=[listening])
        if checking.done():
            checking.result()
    finally:
        checking.cancel()
        await rooms.aclose()
    logger.info("Stopped.")


async def _check(rooms: LiveKitRooms, server: Server) -> None:
    """Ends the server where LiveKit refuses our API key: every single join would fail."""
    try:
        await rooms.check()
    except JoinFailed:
        server.should_exit = True
        raise
    except LiveKitUnavailable as error:
        # Not fatal: in a cluster nobody promises that LiveKit is up before us.
        logger.warning("%s; joins will fail until it can be.", error.detail)


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    return socket.create_server((settings.host, settings.port), family=family, backlog=BACKLOG)


def _serve(settings: Settings) -> str | None:
    """Serves; the line to end with if that cannot be done."""
    configure_logging(settings.log_level)
    try:
        listening = _listen(settings)
    except OSError as error:
        return (
            f"Cannot listen on GATEWAY_HOST {settings.host} GATEWAY_PORT {settings.port}:"
            f" {error.strerror}. Set another one."
        )
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        try:
            runner.run(serve(settings, listening))
        except JoinFailed as error:
            return f"LIVEKIT_API_KEY: {error.detail}."
    return None


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    import uvloop

    return uvloop.new_event_loop


def _ttl(value: str) -> timedelta:
    match = re.fullmatch(r"([1-9][0-9]{0,8})([smhd]?)", value)
    if match is None:
        raise argparse.ArgumentTypeError("a time to live is like 90, 90s, 30m, 6h or 7d")
    unit = {"": "seconds", "s": "seconds", "m": "minutes", "h": "hours", "d": "days"}[match[2]]
    return timedelta(**{unit: int(match[1])})


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m gateway",
        description="LiveKit HTTP/SSE gateway. Settings come from the environment; the README has them.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("serve", help="serve (also without any command)")
    token = commands.add_parser("token", help="print a LiveKit access token")
    token.add_argument("--room", required=True)
    token.add_argument("--identity", required=True)
    token.add_argument("--hidden", action="store_true", help="unseen by others; reads, never sends")
    token.add_argument("--ttl", type=_ttl, default=_ttl(DEFAULT_TTL), help="like 90s, 30m, 6h, 7d")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    arguments = _arguments(argv)
    # LiveKit's development secret is six bytes long; its own server says what is to be said of it.
    warnings.simplefilter("ignore", InsecureKeyLengthWarning)
    try:
        # A token is made without a server; only its key and secret are needed.
        unneeded = {"LIVEKIT_URL": "ws://localhost"} if arguments.command == "token" else {}
        settings = read_settings(unneeded | dict(os.environ))
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    if arguments.command == "token":
        print(
            mint(
                settings.livekit_api_key,
                settings.livekit_api_secret,
                room=arguments.room,
                identity=arguments.identity,
                hidden=arguments.hidden,
                ttl=arguments.ttl,
            )
        )
        return 0
    problem = _serve(settings)
    if problem is not None:
        print(problem, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

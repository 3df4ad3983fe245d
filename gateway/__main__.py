"""`python -m gateway` serves; `python -m gateway token` prints a token. Names the concrete parts."""

import argparse
import asyncio
import gc
import logging
import os
import re
import resource
import socket
import sys
import warnings
from collections.abc import Iterator
from datetime import timedelta

import uvloop
from jwt.warnings import InsecureKeyLengthWarning

from gateway import __version__
from gateway.errors import JoinFailed, LiveKitUnavailable
from gateway.event_log import EventLog, LogBudget
from gateway.hub import Hub
from gateway.logs import configure_logging
from gateway.rooms.base import Rooms
from gateway.rooms.livekit import LiveKitRooms
from gateway.rooms.tokens import mint
from gateway.server import Server, listen
from gateway.settings import TOPIC_BYTES, Settings, SettingsError, read_settings
from gateway.web import sse
from gateway.web.app import make_app

logger = logging.getLogger("gateway")

DEFAULT_TTL = "6h"
"""LiveKit's own default for tokens."""

LONGEST_TTL = timedelta(days=3650)
"""Beyond, a token is a secret that nobody remembers having given away."""

YOUNG_OBJECTS = 10_000
"""Objects made since the last look for garbage in cycles that begin the next one. With Python's 700 the
logs, which keep what every text leaves behind, are looked through again and again: a tenth of a POST."""


def make_hub(rooms: Rooms, settings: Settings) -> Hub:
    budget = LogBudget(settings.log_total_bytes)
    return Hub(
        rooms,
        lambda topics: EventLog(sse.encode, settings.log_bounds, topics, budget),
        topics=settings.topics,
        linger=settings.linger,
        max_connections=settings.max_connections,
        max_rooms_of_identity=settings.max_rooms_of_identity,
        drain_spread=settings.drain_timeout / 2,
    )


def make_server(hub: Hub, settings: Settings) -> Server:
    async def drain() -> None:
        logger.info("Draining: leaving LiveKit and ending event streams.")
        try:
            async with asyncio.timeout(settings.drain_timeout):
                await hub.drain()
        except TimeoutError:
            logger.warning("Not all connections were left within %g s.", settings.drain_timeout)

    return Server(make_app(hub, settings), drain, drain_timeout=settings.drain_timeout)


async def serve(settings: Settings, listening: list[socket.socket]) -> None:
    """Serves until SIGTERM or SIGINT, then drains and returns. Raises JoinFailed at a wrong API key."""
    rooms = LiveKitRooms(
        settings.livekit_url,
        settings.livekit_api_key,
        settings.livekit_api_secret,
        max_stream_bytes=settings.max_stream_bytes,
        stream_idle_timeout=settings.stream_idle_timeout,
        log=settings.livekit_log,
    )
    hub = make_hub(rooms, settings)
    hub.starting = True
    server = make_server(hub, settings)
    # Beside serving, not before it: a server that does not answer would hold up the start, and with
    # it our answer to SIGTERM, which process 1 of a container otherwise ignores.
    checking = asyncio.create_task(_check(rooms, hub, server))
    try:
        for each in listening:
            host, port = each.getsockname()[:2]
            logger.info("Version %s listens on %s port %d.", __version__, host, port)
        await server.serve(sockets=listening)
        if checking.done():
            checking.result()
    finally:
        checking.cancel()
        await rooms.aclose()
    logger.info("Stopped.")


async def _check(rooms: LiveKitRooms, hub: Hub, server: Server) -> None:
    """Ends the server where LiveKit refuses our API key: every single join would fail."""
    refused = False
    try:
        await rooms.check()
    except JoinFailed:
        refused = server.should_exit = True
        raise
    except LiveKitUnavailable as error:
        # Not fatal: in a cluster nobody promises that LiveKit is up before us.
        logger.warning("%s. Joins will fail until that is mended.", error.detail)
    finally:
        hub.starting = refused


def _serve(settings: Settings) -> str | None:
    """Serves; the line to end with if that cannot be done."""
    configure_logging(settings.log_level, livekit=settings.livekit_log)
    _allow_many_files()
    _seldom_look_for_garbage()
    listening = []
    for name, port in _ports(settings):
        try:
            listening.append(listen(settings.host, port))
        except OSError as error:
            return (
                f"Cannot listen on GATEWAY_HOST {settings.host} {name} {port}:"
                f" {error.strerror}. Set another one."
            )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(serve(settings, listening))
        except JoinFailed as error:
            return f"LIVEKIT_API_KEY: {error.detail}."
    return None


def _ports(settings: Settings) -> Iterator[tuple[str, int]]:
    yield "GATEWAY_PORT", settings.port
    if settings.metrics_port is not None:
        yield "GATEWAY_METRICS_PORT", settings.metrics_port


def _ttl(value: str) -> timedelta:
    match = re.fullmatch(r"([1-9][0-9]{0,8})([smhd]?)", value)
    if match is None:
        raise argparse.ArgumentTypeError("a time to live is like 90, 90s, 30m, 6h or 7d")
    unit = {"": "seconds", "s": "seconds", "m": "minutes", "h": "hours", "d": "days"}[match[2]]
    ttl = timedelta(**{unit: int(match[1])})
    if ttl > LONGEST_TTL:
        raise argparse.ArgumentTypeError(f"a token lives for {LONGEST_TTL.days} days at most")
    return ttl


def _name(value: str) -> str:
    if not 0 < len(value.encode("utf-8", "surrogateescape")) <= TOPIC_BYTES or "\0" in value:
        raise argparse.ArgumentTypeError(f"a name has 1 to {TOPIC_BYTES} bytes")
    return value


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m gateway",
        description="LiveKit HTTP/SSE gateway. Settings come from the environment; the README has them.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("serve", help="serve (also without any command)")
    token = commands.add_parser("token", help="print a LiveKit access token")
    token.add_argument("--room", required=True, type=_name)
    token.add_argument("--identity", required=True, type=_name)
    token.add_argument("--hidden", action="store_true", help="unseen by others; reads, never sends")
    token.add_argument(
        "--admin", action="store_true", help="reads and sends unseen, registers topics (roomAdmin)"
    )
    token.add_argument("--ttl", type=_ttl, default=_ttl(DEFAULT_TTL), help="like 90s, 30m, 6h, 7d")
    return parser.parse_args(argv)


def _allow_many_files() -> None:
    """A LiveKit connection takes 100 descriptors and more; the usual soft limit of 1,024 is spent at ten."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _seldom_look_for_garbage() -> None:
    """References free nearly everything of ours at once; what was imported is there to stay."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS)


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
                admin=arguments.admin,
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

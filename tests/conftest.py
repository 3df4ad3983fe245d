"""What tests stand on: a real LiveKit server, and gateways on real sockets in front of it.

Every wait has a deadline; nothing is skipped in silence. A test that needs a program which is not
here is marked `needs("program")`: it is left out with one line at the end that says what is lacking
and how to get it, and with CI=true it fails.
"""

import os
import secrets
import shutil
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from gateway.rooms.livekit import LiveKitRooms
from gateway.rooms.memory import MemoryRooms
from gateway.settings import Settings
from tests.running_gateway import RunningGateway, running
from tools.livekit_server import LiveKitServer, find_livekit_server, start_livekit_server

Serve = Callable[..., AbstractAsyncContextManager[RunningGateway]]

LACKING = pytest.StashKey[set[str]]()


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def livekit_binary() -> Path:
    return find_livekit_server(lambda line: print(line, file=sys.stderr))


@pytest.fixture(scope="session")
def livekit(
    livekit_binary: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveKitServer]:
    """A LiveKit server of the tests' own, on free ports."""
    log = tmp_path_factory.mktemp("livekit") / "server.log"
    report = lambda line: print(line, file=sys.stderr)  # noqa: E731
    with start_livekit_server(livekit_binary, report=report, log=log, port=0) as server:
        yield server


@pytest.fixture(params=["memory", "livekit"])
def serve(request: pytest.FixtureRequest) -> Serve:
    """Opens a gateway with the settings given; once over the in-process twin, once over LiveKit."""
    if request.param == "memory":
        return _serve_memory
    return _serve_livekit(request.getfixturevalue("livekit"))


@pytest.fixture
def serve_memory() -> Serve:
    return _serve_memory


@pytest.fixture
def serve_livekit(livekit: LiveKitServer) -> Serve:
    return _serve_livekit(livekit)


@pytest.fixture
async def gateway(livekit: LiveKitServer) -> AsyncIterator[RunningGateway]:
    """A gateway with its default settings in front of the real server."""
    async with _serve_livekit(livekit)() as running_gateway:
        yield running_gateway


@pytest.fixture
def room() -> str:
    """The name of a room that no other test uses."""
    return f"room-{secrets.token_hex(4)}"


@asynccontextmanager
async def _serve_memory(**changes: object) -> AsyncIterator[RunningGateway]:
    settings = Settings("ws://in-process", "devkey", "secret", **changes)  # type: ignore[arg-type]
    async with running(MemoryRooms(), settings) as running_gateway:
        yield running_gateway


def _serve_livekit(server: LiveKitServer) -> Serve:
    return partial(serve_on, server)


@asynccontextmanager
async def serve_on(
    server: LiveKitServer | None, **changes: object
) -> AsyncIterator[RunningGateway]:
    """A gateway in front of that server; of None, in front of an address where nothing listens."""
    credentials = (
        ("ws://127.0.0.1:1", "devkey", "secret")
        if server is None
        else (server.url, server.api_key, server.api_secret)
    )
    settings = Settings(*credentials, **changes)  # type: ignore[arg-type]
    rooms = LiveKitRooms(*credentials, max_stream_bytes=settings.max_stream_bytes)
    async with running(rooms, settings) as running_gateway:
        yield running_gateway


def pytest_configure(config: pytest.Config) -> None:
    config.stash[LACKING] = set()
    config.addinivalue_line("markers", "needs(program): needs a program of the system")


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs"):
        (program,) = marker.args
        if shutil.which(program) is None:
            item.config.stash[LACKING].add(program)
            lack = f"{program} is not installed; `make test-deps` installs it"
            if os.environ.get("CI") == "true":
                pytest.fail(lack)
            pytest.skip(lack)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if lacking := config.stash[LACKING]:
        terminalreporter.write_line(
            f"Tests were left out for lack of {', '.join(sorted(lacking))}:"
            " `make test-deps` installs what they need (Debian, Ubuntu).",
            yellow=True,
        )

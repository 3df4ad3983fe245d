"""What tests stand on: a real LiveKit server, and gateways on real sockets in front of it.

Every wait has a deadline; nothing is skipped in silence. A test that needs a program which is not
here is marked `needs("program")`: it is left out with one line at the end that says what is lacking
and how to get it, and with CI=true it fails.
"""

import os
import secrets
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from functools import partial
from pathlib import Path

import pytest
from playwright.async_api import Browser

from gateway.rooms.livekit import LiveKitRooms
from gateway.rooms.memory import MemoryRooms
from gateway.settings import Settings
from tests.agent.played_session import (
    SESSION_PROGRAM,
    PlayedSession,
    played_session,
    worked_session,
)
from tests.agent.running_agent import (
    AgentProgram,
    RunningAgent,
    RunningWorker,
    running_agent,
    running_worker,
)
from tests.agent.session_wire import SessionWire, session_wire
from tests.browser.chromium import running_chromium
from tests.browser.npm import LIVEKIT_CLIENT, TUS_CLIENT, ScriptNotFound
from tests.browser.participant import BrowserParticipant, browser_participant as in_browser
from tests.programs import find_program
from tests.running_gateway import RunningGateway, livekit_token, running
from tools.agent_environment import AgentEnvironmentFailed, agent_python as find_agent_python
from tools.livekit_server import (
    LiveKitServer,
    LiveKitServerError,
    find_livekit_server,
    start_livekit_server,
)

Serve = Callable[..., AbstractAsyncContextManager[RunningGateway]]
AgentIn = Callable[..., AbstractAsyncContextManager[RunningAgent]]
StartWorker = Callable[..., AbstractAsyncContextManager[RunningWorker]]
Play = Callable[..., AbstractAsyncContextManager[PlayedSession]]
WireIn = Callable[..., AbstractAsyncContextManager[SessionWire]]
InBrowser = Callable[..., AbstractAsyncContextManager[BrowserParticipant]]

MADE_ONCE: dict[str, Callable[[Callable[[str], None]], Path]] = {
    "livekit_binary": find_livekit_server,
    "agent_python": find_agent_python,
    "livekit_client": LIVEKIT_CLIENT.get,
    "tus_client": TUS_CLIENT.get,
}
"""What some fixtures need, and how it is got."""

LACKING = pytest.StashKey[set[str]]()


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def livekit_binary() -> Path:
    return find_livekit_server(_report)


@pytest.fixture(scope="session")
def livekit(
    livekit_binary: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveKitServer]:
    """A LiveKit server of the tests' own, on free ports."""
    log = tmp_path_factory.mktemp("livekit") / "server.log"
    with start_livekit_server(livekit_binary, report=_report, log=log, port=0) as server:
        yield server


@pytest.fixture
def server(livekit_binary: Path, tmp_path: Path) -> Iterator[LiveKitServer]:
    """A LiveKit server of this one test's, to be stopped and started."""
    log = tmp_path / "livekit.log"
    with start_livekit_server(livekit_binary, report=_report, log=log, port=0) as server:
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


@pytest.fixture(scope="session")
def agent_python() -> Path:
    """The Python of the environment that LiveKit Agents is installed in."""
    return find_agent_python(_report)


@pytest.fixture(scope="session")
def agent_program(
    agent_python: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[AgentProgram]:
    """The process that the tests' agents share."""
    with AgentProgram(agent_python, tmp_path_factory.mktemp("agents")) as program:
        yield program


@pytest.fixture
def logged_agents(agent_program: AgentProgram) -> Iterator[AgentProgram]:
    """The same; what it logs meanwhile is shown when the test fails."""
    with _log_shown(agent_program):
        yield agent_program


@pytest.fixture
def agent_in(logged_agents: AgentProgram, livekit: LiveKitServer) -> AgentIn:
    """Puts an agent into a room, without a dispatch: `async with agent_in(room) as agent`."""
    return partial(running_agent, logged_agents, livekit)


@pytest.fixture(scope="session")
def session_program(
    agent_python: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[AgentProgram]:
    """The process of the sessions that tests play."""
    folder = tmp_path_factory.mktemp("sessions")
    with AgentProgram(agent_python, folder, SESSION_PROGRAM) as program:
        yield program


@pytest.fixture
def play(session_program: AgentProgram, livekit: LiveKitServer) -> Iterator[Play]:
    """Puts a scripted session into a room: `async with play(room, voice=True) as session`."""
    with _log_shown(session_program):
        yield partial(played_session, session_program, livekit)


@pytest.fixture
def work(session_program: AgentProgram, livekit: LiveKitServer) -> Iterator[Play]:
    """The same of a worker, where `agent_name` is asked for: `async with work(agent_name) as …`."""
    with _log_shown(session_program):
        yield partial(worked_session, session_program, livekit)


@pytest.fixture
def wire_in(livekit: LiveKitServer) -> WireIn:
    """A participant that reads what sessions send: `async with wire_in(room) as wire`."""
    return partial(session_wire, livekit)


@pytest.fixture
def agent_worker(logged_agents: AgentProgram, livekit: LiveKitServer) -> StartWorker:
    """Registers a worker, whose agents LiveKit dispatches: `async with agent_worker() as worker`."""
    return partial(running_worker, logged_agents, livekit)


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    """A Chromium; tests that use it are marked `needs("chromium")`."""
    async with running_chromium() as browser:
        yield browser


@pytest.fixture(scope="session")
def livekit_client() -> Path:
    """The script of LiveKit's client for browsers; tests that use it are marked `needs("npm")`."""
    return LIVEKIT_CLIENT.get(_report)


@pytest.fixture(scope="session")
def tus_client() -> Path:
    """The script of tus-js-client, which uploads texts; likewise."""
    return TUS_CLIENT.get(_report)


@pytest.fixture
def browser_participant(
    browser: Browser, livekit_client: Path, livekit: LiveKitServer
) -> InBrowser:
    """Joins a room by WebRTC: `async with browser_participant(room, "bob") as bob`."""

    def join(
        room: str, identity: str, topics: Sequence[str] = ("lk.chat",), token: str | None = None
    ) -> AbstractAsyncContextManager[BrowserParticipant]:
        token = token or livekit_token(livekit, room, identity)
        return in_browser(browser, livekit_client, livekit.url, token, identity, topics)

    return join


@contextmanager
def _log_shown(program: AgentProgram) -> Iterator[None]:
    before = program.log.stat().st_size
    yield
    with program.log.open("rb") as log:
        log.seek(before)
        print(log.read().decode(errors="replace"), file=sys.stderr)


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
    rooms = LiveKitRooms(
        *credentials,
        max_stream_bytes=settings.max_stream_bytes,
        stream_idle_timeout=settings.stream_idle_timeout,
    )
    async with running(rooms, settings) as running_gateway:
        yield running_gateway


def pytest_configure(config: pytest.Config) -> None:
    config.stash[LACKING] = set()
    config.addinivalue_line("markers", "needs(program): needs a program of the system")


def _report(line: str) -> None:
    print(line, file=sys.stderr)


def pytest_collection_finish(session: pytest.Session) -> None:
    """What is made once per machine is made before the first test: no test's time runs meanwhile, and
    a person sees what goes on. What fails here fails again in the fixture, and is told by its tests."""
    if session.config.option.collectonly:
        return
    wanted = {name for item in session.items for name in getattr(item, "fixturenames", ())}
    for fixture, make in MADE_ONCE.items():
        if fixture in wanted:
            with suppress(LiveKitServerError, AgentEnvironmentFailed, ScriptNotFound):
                make(_report)


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs"):
        (program,) = marker.args
        if find_program(program) is None:
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

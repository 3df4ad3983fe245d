"""Chromium with a bare `EventSource`, at a gateway that goes away and comes back, and at one in front of which it has no connections left."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path

import httpx
import pytest
from _pytest.mark import ParameterSet
from playwright.async_api import Browser, BrowserContext

from tests.browser.event_source import CLOSED, CONNECTING, EventSources
from tests.conftest import Serve
from tests.gateway_process import GatewayProcess, gateway_process
from tests.proxies.programs import PROXIES, Certificate, running_nginx
from tests.running_gateway import DEADLINE, livekit_token
from tools.livekit_server import LiveKitServer

pytestmark = [pytest.mark.needs("chromium"), pytest.mark.needs("openssl")]

CONNECTIONS = 6
"""To one origin that a browser has by HTTP/1.1, all its tabs together."""

Way = Callable[[str], AbstractAsyncContextManager[str]]
"""From the address of a gateway to the one that its pages have."""


def _ways(*names: str) -> list[ParameterSet]:
    """With what each needs."""
    proxies = [name.partition(" ")[0] for name in names]
    return [
        pytest.param(name, marks=[pytest.mark.needs(proxy)] if proxy in PROXIES else [])
        for name, proxy in zip(names, proxies, strict=True)
    ]


@pytest.fixture(
    params=_ways("directly", "nginx by HTTP/1.1", "nginx by HTTP/2", "haproxy by HTTP/2")
)
def way(request: pytest.FixtureRequest, tmp_path: Path, certificate: Certificate) -> Way:
    """`async with way(gateway.url) as url`."""
    proxy, _, version = request.param.partition(" by ")
    if proxy == "directly":
        return nullcontext

    def through(upstream: str) -> AbstractAsyncContextManager[str]:
        # Browsers speak HTTP/2 over TLS only.
        return PROXIES[proxy](upstream, tmp_path, certificate if version == "HTTP/2" else None)

    return through


@pytest.fixture
async def profile(browser: Browser) -> AsyncIterator[BrowserContext]:
    """What a person's tabs have in common."""
    profile = await browser.new_context(ignore_https_errors=True)
    yield profile
    await profile.close()


@pytest.fixture
async def gateway_program(livekit: LiveKitServer, tmp_path: Path) -> AsyncIterator[GatewayProcess]:
    async with gateway_process(livekit, tmp_path / "gateway.log") as gateway:
        yield gateway


async def _tab(profile: BrowserContext, origin: str) -> EventSources:
    tab = EventSources(await profile.new_page())
    await tab.goto(f"{origin}/livez")
    return tab


def _events(livekit: LiveKitServer, room: str, identity: str) -> str:
    token = livekit_token(livekit, room, identity)
    return f"/rooms/{room}/topics/lk.chat/events?access_token={token}"


async def _send(gateway: str, livekit: LiveKitServer, room: str, identity: str, text: str) -> None:
    headers = {
        "Authorization": f"Bearer {livekit_token(livekit, room, identity)}",
        "Content-Type": "text/plain",
    }
    async with httpx.AsyncClient(timeout=DEADLINE) as client:
        answer = await client.post(f"{gateway}/rooms/{room}/text", content=text, headers=headers)
    assert answer.status_code == 200


TEXT = ["stream.opened", "stream.chunk", "stream.closed"]


@pytest.mark.parametrize(
    ("end", "told"),
    [(GatewayProcess.kill, []), (GatewayProcess.stop, ["gateway.closing"])],
    ids=["killed", "stopped"],
)
async def test_a_page_comes_back_by_itself_when_the_gateway_was(
    gateway_program: GatewayProcess,
    livekit: LiveKitServer,
    room: str,
    way: Way,
    profile: BrowserContext,
    end: Callable[[GatewayProcess], Awaitable[None]],
    told: list[str],
) -> None:
    async with way(gateway_program.url) as origin:
        tab = await _tab(profile, origin)
        await tab.open(_events(livekit, room, "alice"))
        await tab.next("gateway.opened")
        await _send(gateway_program.url, livekit, room, "carol", "before")
        last = (await tab.next("stream.closed")).last_event_id

        await end(gateway_program)
        for name in told:
            closing = await tab.next(name)
            assert closing.data["reason"] == "drain"
        await tab.until_turned_away()
        await gateway_program.start()

        gap = await tab.next("gateway.gap")
        await _send(gateway_program.url, livekit, room, "dave", "after")
        await tab.next("stream.closed")
        asked_with = await tab.last_event_ids()

    assert (gap.data["reason"], gap.data["from"]) == ("restarted", last)
    assert tab.texts == ["before", "after"]
    assert tab.names == [
        *("gateway.opened", *TEXT, *told),
        *("gateway.opened", "gateway.gap", *TEXT),
    ]
    assert set(tab.states) == {CONNECTING}
    assert asked_with[0] is None
    assert set(asked_with[1:]) == {last}


async def test_a_page_that_is_opened_while_the_gateway_is_away_reads_when_it_is_back(
    gateway_program: GatewayProcess,
    livekit: LiveKitServer,
    room: str,
    way: Way,
    profile: BrowserContext,
) -> None:
    async with way(gateway_program.url) as origin:
        tab = await _tab(profile, origin)
        await gateway_program.stop()
        await tab.open(_events(livekit, room, "alice"))
        await tab.until_turned_away()
        await gateway_program.start()
        await tab.next("gateway.opened")

    assert set(tab.states) == {CONNECTING}


@pytest.mark.needs("nginx")
async def test_a_page_gives_up_where_nginx_answers_in_its_own_words(
    gateway_program: GatewayProcess,
    livekit: LiveKitServer,
    room: str,
    profile: BrowserContext,
    tmp_path: Path,
) -> None:
    """What the last line of the documented location is for."""
    without = ("error_page 502 504 = $gateway_away;\n", "")
    async with running_nginx(gateway_program.url, tmp_path, None, without) as origin:
        tab = await _tab(profile, origin)
        await tab.open(_events(livekit, room, "alice"))
        await tab.next("gateway.opened")
        await gateway_program.kill()
        while (await tab.next("error")).data != CLOSED:
            pass


@pytest.mark.parametrize("way", _ways("directly", "nginx by HTTP/1.1"), indirect=True)
async def test_by_http_1_1_all_tabs_together_have_six_connections(
    serve_memory: Serve, room: str, way: Way, profile: BrowserContext
) -> None:
    async with serve_memory() as gateway, way(gateway.url) as origin:
        path = f"/rooms/{room}/topics/lk.chat/events?access_token={gateway.token('alice', room)}"
        first, second = await _tab(profile, origin), await _tab(profile, origin)
        for _ in range(CONNECTIONS):
            await first.open(path)
            await first.next("gateway.opened")
        await second.open(path)
        await gateway.post(room, "carol", "to all")
        for _ in range(CONNECTIONS):
            await first.next("stream.closed")
        assert second.heard == []

        await first.close(0)
        await second.next("gateway.opened")


@pytest.mark.parametrize(
    "way", _ways("nginx by HTTP/2", "haproxy by HTTP/2", "caddy by HTTP/2"), indirect=True
)
async def test_by_http_2_a_page_has_more_event_streams_than_that(
    serve_memory: Serve, room: str, way: Way, profile: BrowserContext
) -> None:
    async with serve_memory() as gateway, way(gateway.url) as origin:
        path = f"/rooms/{room}/topics/lk.chat/events?access_token={gateway.token('alice', room)}"
        tab = await _tab(profile, origin)
        for _ in range(2 * CONNECTIONS):
            await tab.open(path)
            await tab.next("gateway.opened")
        await gateway.post(room, "carol", "to all")
        for _ in range(2 * CONNECTIONS):
            await tab.next("stream.closed")

    assert tab.texts == ["to all"] * 2 * CONNECTIONS

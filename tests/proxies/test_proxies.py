"""nginx, HAProxy and Caddy as docs/proxies.md has them, in front of a gateway."""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import Serve
from tests.polling import poll_until
from tests.proxies.curl import Curl, curl
from tests.proxies.programs import DOCS, PROXIES, Certificate, running_nginx
from tests.running_gateway import DEADLINE, EventStream, emptied

pytestmark = [pytest.mark.needs("curl"), pytest.mark.needs("openssl")]

Through = Callable[..., AbstractAsyncContextManager[str]]
Ask = Callable[..., AbstractAsyncContextManager[Curl]]

NOBODY = "127.0.0.1:1"
"""Where no gateway listens."""

EVENT_ROUTES = [
    "/rooms/demo/topics/lk.chat/events",
    "/rooms/a%2Fb/topics/c%2Fd/events",
    "/rooms/demo/events",
    "/rooms/demo/events?topic=lk.chat&topic=notes&access_token=a-secret",
]

OTHER_ROUTES = ["/rooms/demo/text", "/rooms/demo/topics/events", "/events"]


@pytest.fixture(
    params=[pytest.param(name, marks=pytest.mark.needs(name.partition(" ")[0])) for name in PROXIES]
)
def through(request: pytest.FixtureRequest, tmp_path: Path, certificate: Certificate) -> Through:
    """`async with through(gateway.url) as proxy`."""

    def start(upstream: str, *changes: tuple[str, str]) -> AbstractAsyncContextManager[str]:
        return PROXIES[request.param](upstream, tmp_path, certificate, *changes)

    return start


@pytest.fixture(params=["http1.1", "http2"])
def ask(request: pytest.FixtureRequest, certificate: Certificate) -> Ask:
    """`async with ask(proxy + path, "-H", …) as answer`."""
    return partial(curl, f"--{request.param}", "--cacert", str(certificate.certificate))


def _headers(headers: Mapping[str, str]) -> list[str]:
    return [part for name, value in headers.items() for part in ("-H", f"{name}: {value}")]


def _events(room: str) -> str:
    return f"/rooms/{room}/topics/lk.chat/events"


async def test_events_are_not_held_back(
    serve_memory: Serve, through: Through, ask: Ask, room: str
) -> None:
    async with serve_memory() as gateway, through(gateway.url) as proxy:
        headers = {**gateway.bearer("bob", room), "Accept-Encoding": "gzip, br, zstd"}
        async with ask(proxy + _events(room), *_headers(headers)) as bob:
            events = await bob.events()
            await events.until("gateway.opened")
            for text in ("one", "two", "three"):
                await gateway.post(room, "carol", text)
                assert (await events.until("stream.chunk")).data["text"] == text

    answer = events.response
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store, no-transform"
    assert "content-encoding" not in answer.headers


async def test_the_front_speaks_the_version_that_it_is_asked_for(
    serve_memory: Serve, through: Through, certificate: Certificate
) -> None:
    async with serve_memory() as gateway, through(gateway.url) as proxy:
        spoken = []
        for version in ("--http1.1", "--http2"):
            trusted = str(certificate.certificate)
            async with curl(version, "--cacert", trusted, f"{proxy}/livez") as asking:
                spoken.append((await asking.head()).extensions["http_version"])

    assert spoken == [b"HTTP/1.1", b"HTTP/2"]


async def test_a_text_arrives_while_it_is_being_written(
    serve_memory: Serve, through: Through, ask: Ask, room: str
) -> None:
    async with (
        serve_memory() as gateway,
        through(gateway.url) as proxy,
        gateway.events(room, "bob") as events,
    ):
        headers = {**gateway.bearer("carol", room), "Content-Type": "text/plain", "Expect": ""}
        upload = ("-X", "POST", "--upload-file", "-", *_headers(headers))
        async with ask(f"{proxy}/rooms/{room}/text", *upload) as carol:
            for piece in ("one, ", "two, ", "three"):
                carol.send(piece)
                assert (await events.until("stream.chunk")).data["text"] == piece
            carol.finish()
            head, accepted = await carol.problem()
        closed = await events.until("stream.closed")

    assert head.status_code == 200
    assert accepted["size"] == len("one, two, three")
    assert closed.data["complete"] is True


async def test_who_comes_back_with_its_last_id_misses_nothing(
    serve_memory: Serve, through: Through, ask: Ask, room: str
) -> None:
    async with serve_memory() as gateway, through(gateway.url) as proxy:
        headers = gateway.bearer("bob", room)
        async with ask(proxy + _events(room), *_headers(headers)) as bob:
            last = await (await bob.events()).cursor()
        await gateway.post(room, "carol", "meanwhile")
        headers["Last-Event-ID"] = last
        async with ask(proxy + _events(room), *_headers(headers)) as bob:
            heard = await (await bob.events()).take(4)

    assert [event.name for event in heard] == [
        "gateway.opened",
        "stream.opened",
        "stream.chunk",
        "stream.closed",
    ]
    assert heard[2].data["text"] == "meanwhile"


async def test_heartbeats_keep_a_quiet_stream_open(
    serve_memory: Serve, through: Through, ask: Ask, room: str, request: pytest.FixtureRequest
) -> None:
    caddy = "caddy" in request.node.name  # has no such timeouts
    shorter = [] if caddy else [("90s", "1s")]
    async with (
        serve_memory(heartbeat=0.4) as gateway,
        through(gateway.url, *shorter) as proxy,
        ask(proxy + _events(room), *_headers(gateway.bearer("bob", room))) as bob,
    ):
        events = await bob.events()
        async with asyncio.timeout(DEADLINE):
            while events.comments.count("heartbeat") < 5:
                await events._block()
        await gateway.post(room, "carol", "still there?")
        assert (await events.until("stream.chunk")).data["text"] == "still there?"


async def test_the_gateway_notices_that_a_reader_leaves(
    serve_memory: Serve, through: Through, ask: Ask, room: str
) -> None:
    async with (
        serve_memory(linger=0) as gateway,
        through(gateway.url) as proxy,
        ask(proxy + _events(room), *_headers(gateway.bearer("bob", room))) as bob,
    ):
        await (await bob.events()).until("gateway.opened")
        assert gateway.hub.connections == 1
        bob.break_off()
        await emptied(gateway.hub)


async def test_what_the_gateway_itself_refuses_is_passed_on_as_it_is(
    serve_memory: Serve, through: Through, ask: Ask, room: str
) -> None:
    async with (
        serve_memory(max_event_streams=1) as gateway,
        through(gateway.url) as proxy,
        gateway.events(room, "bob") as events,
    ):
        last = await events.cursor()
        headers = gateway.bearer("carol", room)
        async with ask(proxy + _events(room), *_headers(headers)) as fresh:
            refused, problem = await fresh.problem()
        headers["Last-Event-ID"] = last
        async with ask(proxy + _events(room), *_headers(headers)) as returning:
            told = await returning.events()
            closing = await told.next()
            await told.ends()

    assert (refused.status_code, problem["code"]) == (503, "too_many_event_streams")
    assert refused.headers["retry-after"] == "30"
    assert (closing.name, closing.data["reason"], told.retry) == (
        "gateway.closing",
        "overloaded",
        30_000,
    )


async def test_while_the_gateway_is_away_a_browser_is_told_to_come_back(
    through: Through, ask: Ask
) -> None:
    async def asked(url: str) -> EventStream:
        async with ask(url) as asking:
            events = await asking.events()
            await events.ends()
            return events

    async with through(NOBODY) as proxy:
        answers = await asyncio.gather(*(asked(proxy + path) for path in EVENT_ROUTES))

    for events in answers:
        assert events.response.status_code == 200
        assert events.response.headers["content-type"] == "text/event-stream"
        assert events.response.headers["cache-control"] == "no-store"
        assert events.retry == 2_000


async def test_while_the_gateway_is_away_everybody_else_is_told_the_problem(
    through: Through, ask: Ask
) -> None:
    async def asked(*arguments: str) -> tuple[httpx.Response, dict[str, Any]]:
        async with ask(*arguments) as asking:
            return await asking.problem()

    json_lines = ("-H", "Accept: application/x-ndjson")
    async with through(NOBODY) as proxy:
        answers = await asyncio.gather(
            *(asked("--data", "text", proxy + path) for path in OTHER_ROUTES),
            *(asked(*json_lines, proxy + path) for path in EVENT_ROUTES),
        )

    for answer, problem in answers:
        assert answer.status_code in (502, 503)
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["retry-after"] == "2"
        assert (problem["status"], problem["code"]) == (answer.status_code, "gateway_away")


@pytest.mark.needs("nginx")
async def test_pages_of_other_origins_may_read_what_nginx_says(
    tmp_path: Path, certificate: Certificate, ask: Ask
) -> None:
    change = ("# https://app.example.com  $http_origin;", "https://app.example.com $http_origin;")
    allowed = []
    async with running_nginx(NOBODY, tmp_path, certificate, change) as nginx:
        for path in EVENT_ROUTES[0], OTHER_ROUTES[0]:
            for origin in "https://app.example.com", "https://other.example.com":
                async with ask("-H", f"Origin: {origin}", nginx + path) as asking:
                    head = await asking.head()
                    allowed.append(head.headers.get("access-control-allow-origin"))

    assert allowed == ["https://app.example.com", None] * 2


async def test_no_token_is_logged(
    serve_memory: Serve,
    through: Through,
    ask: Ask,
    room: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    # In Kubernetes the access log is off, for its format is not this file's to say.
    a_line = 0 if "Kubernetes" in request.node.name else 1

    def logged() -> str:
        return "".join(log.read_text() for log in tmp_path.glob("*.log"))

    async def asked(proxy: str, status: int) -> None:
        async with ask(f"{proxy}{_events(room)}?access_token=a-secret") as asking:
            assert (await asking.head()).status_code == status
            await asking.rest()

    async with serve_memory() as gateway, through(gateway.url) as proxy:
        await asked(proxy, 401)
        await poll_until(lambda: logged().count(_events(room)) == a_line)
    async with through(NOBODY) as proxy:
        await asked(proxy, 200)
        await poll_until(lambda: logged().count(_events(room)) == 2 * a_line)

    assert "a-secret" not in logged()


@pytest.mark.parametrize("name", ["nginx.conf", "haproxy.cfg", "come_back.http", "Caddyfile"])
def test_the_documentation_has_the_configurations_that_are_tested(name: str) -> None:
    assert (DOCS / name).read_text() in (DOCS / "proxies.md").read_text()

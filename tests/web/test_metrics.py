"""GET /metrics: each number moves when its thing happens, and nobody is named."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway import __version__
from gateway.event_log import EvictedBy
from gateway.events import ClosingReason
from gateway.rooms.base import Listener
from gateway.rooms.memory import MemoryRoom
from tests.conftest import Serve, serve_on
from tests.polling import POLL
from tests.running_gateway import DEADLINE, RunningGateway

PREFIX = "livekit_gateway_"

DEPLOYMENT = Path(__file__).parents[2] / "docs" / "deployment.md"

Numbers = dict[tuple[str, frozenset[tuple[str, str]]], float]


def _numbers(text: str) -> Numbers:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


class Scraped:
    def __init__(self, text: str) -> None:
        self.text = text
        self._numbers = _numbers(text)

    def __call__(self, name: str, **labels: str) -> float:
        return self._numbers[PREFIX + name, frozenset(labels.items())]


async def _scrape(gateway: RunningGateway) -> Scraped:
    answer = await gateway.client.get("/metrics")
    assert answer.status_code == 200
    return Scraped(answer.text)


async def _once(gateway: RunningGateway, true: Callable[[Scraped], object]) -> Scraped:
    """The first that it is true of: an answer's end is known here before it is counted there."""
    async with asyncio.timeout(DEADLINE):
        while not true(scraped := await _scrape(gateway)):
            await asyncio.sleep(POLL)
    return scraped


async def test_it_is_in_prometheus_format_and_named_by_its_conventions(
    serve_memory: Serve, room: str
) -> None:
    async with serve_memory() as gateway:
        await gateway.post(room, "bob", "hi")
        answer = await gateway.client.get("/metrics")
        head = await gateway.client.head("/metrics")

    families = list(text_string_to_metric_families(answer.text))
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert answer.headers["cache-control"] == "no-store"
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == answer.headers["content-type"]
    assert {"process_cpu_seconds", "python_gc_collections"} <= {each.name for each in families}
    for family in families:
        assert re.match(rf"{PREFIX}[a-z]|process_|python_gc_", family.name)
        assert family.documentation
        assert family.type in ("counter", "gauge", "histogram")
        counted = {sample.name.endswith("_total") for sample in family.samples}
        assert counted <= {family.type == "counter"}, family.name
    versions = {"version": __version__, "livekit": version("livekit")}
    assert Scraped(answer.text)("build_info", **versions) == 1


async def test_event_streams_and_what_they_are_written(serve: Serve, room: str) -> None:
    async with serve(max_event_streams=7) as gateway:
        async with gateway.events(room, "bob") as bob, gateway.events(room, "bob") as again:
            for each in (bob, again):
                await each.until("gateway.opened")
                await each.cursor()
            before = await _scrape(gateway)
            await gateway.post(room, "bob", "hi")
            for each in (bob, again):
                await each.until("stream.closed")
            after = await _once(gateway, lambda now: now("deliveries_total") > 0)
        left = await _once(gateway, lambda now: not now("event_streams"))

    assert (before("event_streams"), before("event_streams_opened_total")) == (2, 2)
    assert before("event_streams_limit") == 7
    assert after("events_total") - before("events_total") == 3
    assert after("deliveries_total") - before("deliveries_total") == 6
    assert after("delivered_bytes_total") - before("delivered_bytes_total") > 600
    # Both follow the same, and are written to together.
    deliveries = after("delivery_lag_seconds_count") - before("delivery_lag_seconds_count")
    assert 1 <= deliveries <= 3
    assert after("delivery_lag_seconds_bucket", le="2.5") == after("delivery_lag_seconds_count")
    assert 0 < after("delivery_lag_seconds_sum") < 2.5
    assert left("event_streams_closed_total", reason="client_gone") == 2


@pytest.mark.parametrize("reason", ["left", "max_age", "drain"])
async def test_event_streams_that_are_closed_are_counted_by_reason(
    serve: Serve, room: str, reason: str
) -> None:
    async with (
        serve(max_age=0.2 if reason == "max_age" else 60) as gateway,
        gateway.events(room, "bob") as bob,
    ):
        await bob.until("gateway.opened")
        if reason == "left":
            path = f"/rooms/{room}/participants/bob"
            await gateway.client.delete(path, headers=gateway.bearer("bob", room))
        if reason == "drain":
            await gateway.hub.drain()
        await bob.until("gateway.closing")
        await bob.ends()
        scraped = await _scrape(gateway)

    assert {each: scraped("event_streams_closed_total", reason=each) for each in ClosingReason} == {
        each: float(each == reason) for each in ClosingReason
    }
    assert scraped("event_streams") == 0
    assert scraped("draining") == (reason == "drain")


async def test_a_reader_that_stands_still_is_counted_as_stalled(
    serve_memory: Serve, room: str
) -> None:
    async with serve_memory(write_timeout=0.3) as gateway, _standing_still(gateway, room):
        async with asyncio.timeout(20):
            while not (now := await _scrape(gateway))(
                "event_streams_closed_total", reason="stalled"
            ):
                await gateway.post(room, "carol", "x" * 1_000_000)

    assert now("event_streams") == 0


@asynccontextmanager
async def _standing_still(gateway: RunningGateway, room: str) -> AsyncIterator[None]:
    path = f"/rooms/{room}/topics/lk.chat/events?access_token={gateway.token('bob', room)}"
    host, port = gateway.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    await reader.readuntil(b"gateway.opened")
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        writer.transport.abort()


async def test_who_comes_back_is_counted_by_what_may_be_missing(serve: Serve, room: str) -> None:
    async with serve() as gateway:
        async with gateway.events(room, "bob") as bob:
            await bob.until("gateway.opened")
            position = await bob.cursor()
        for last_event_id in (position, f"{'0' * 16}-3"):
            async with gateway.events(room, "bob", last_event_id=last_event_id) as bob:
                await bob.until("gateway.opened")
        scraped = await _scrape(gateway)

    outcomes = ("continued", "restarted", "evicted", "unknown")
    told = [scraped("event_stream_resumes_total", outcome=outcome) for outcome in outcomes]
    assert told == [1, 1, 0, 0]


async def test_who_is_told_to_come_later_is_counted_though_it_is_answered_200(
    serve_memory: Serve, room: str
) -> None:
    async with (
        serve_memory(max_event_streams=1) as gateway,
        gateway.events(room, "bob") as bob,
    ):
        await bob.until("gateway.opened")
        position = await bob.cursor()
        async with gateway.events(room, "bob", last_event_id=position) as again:
            await again.until("gateway.closing")
        scraped = await _scrape(gateway)

    assert scraped("event_streams_turned_away_total", reason="overloaded") == 1
    assert scraped("event_streams_opened_total") == 1


async def test_a_broken_connection_is_counted_and_then_its_gap(
    serve_memory: Serve, room: str
) -> None:
    async with serve_memory() as gateway, gateway.events(room, "bob") as bob:
        await bob.until("gateway.opened")
        (slot,) = gateway.hub._slots.values()
        livekit: Listener = slot.connection._carrier.room.listener
        livekit.reconnecting()
        broken = await _scrape(gateway)
        livekit.reconnected()
        mended = await _scrape(gateway)

    reconnecting = {"kind": "participant", "state": "reconnecting"}
    assert (broken("connections", **reconnecting), mended("connections", **reconnecting)) == (1, 0)
    assert (broken("gaps_total", reason="unknown"), mended("gaps_total", reason="unknown")) == (
        0,
        1,
    )


async def test_connections_are_counted_by_kind_and_state(serve: Serve, room: str) -> None:
    async with serve(max_connections=9) as gateway:
        async with gateway.events(room, "bob") as bob, gateway.admin_events("absent") as admin:
            await bob.until("gateway.opened")
            await admin.until("room.waiting")
            followed = await _scrape(gateway)
        lingering = {"kind": "participant", "state": "lingering"}
        left = await _once(gateway, lambda now: now("connections", **lingering))

    assert followed("connections", kind="participant", state="joined") == 1
    assert followed("connections", kind="observer", state="waiting") == 1
    assert followed("connections_limit") == 9
    assert left("connections", kind="participant", state="joined") == 0


async def test_joins_are_counted_and_timed(serve: Serve, room: str) -> None:
    async with serve() as gateway:
        await gateway.post(room, "bob", "hi")
        scraped = await _scrape(gateway)

    assert scraped("joins_total", outcome="joined") == 1
    assert scraped("join_duration_seconds_count") == 1
    assert 0 < scraped("join_duration_seconds_sum") < DEADLINE
    assert scraped("joins_waiting") == 0


async def test_joins_that_fail_are_counted_by_what_they_are_answered_with(room: str) -> None:
    async with serve_on(None) as gateway:
        answer = await gateway.post(room, "bob", "hi")
        scraped = await _scrape(gateway)

    assert answer.json()["code"] == "livekit_unavailable"
    assert scraped("joins_total", outcome="joined") == 0
    assert scraped("join_duration_seconds_count") == 0
    route = "/rooms/{room}/text"
    assert scraped("http_requests_total", method="POST", route=route, code="503") == 1


async def test_logs_are_counted_also_when_they_are_gone(serve: Serve, room: str) -> None:
    async with serve(log_events=4, linger=0) as gateway:
        async with gateway.events(room, "bob") as bob:
            await bob.until("gateway.opened")
            for _ in range(2):
                await gateway.post(room, "bob", "hi")
                await bob.until("stream.closed")
            kept = await _scrape(gateway)
        gone = await _once(gateway, lambda now: not now("log_events"))

    assert (kept("events_total"), kept("log_events")) == (6, 4)
    for each in (kept, gone):
        evicted = {why: each("evicted_events_total", reason=why) for why in EvictedBy}
        assert evicted == {"count": 2, "size": 0, "age": 0, "total": 0}
    assert kept("log_bytes") > 400
    assert gone("events_total") == 6
    assert gone("log_bytes") == 0


async def test_texts_are_counted_whole_and_broken(serve: Serve, room: str) -> None:
    async with serve() as gateway, gateway.events(room, "bob") as bob:
        await bob.until("gateway.opened")
        await gateway.post(room, "bob", "hi")
        await bob.until("stream.closed")
        async with gateway.upload(room, "bob") as upload:
            upload.send(b"half")
            await bob.until("stream.chunk")
            under_way = await _scrape(gateway)
            upload.break_off()
            await bob.until("stream.closed")
        broken = await _once(gateway, lambda now: not now("open_texts"))

    assert (under_way("texts_sent_total"), under_way("text_bytes_total")) == (1, 6)
    assert under_way("open_texts") == 1
    assert "texts_incomplete_total{" not in under_way.text
    assert broken("texts_sent_total") == 1
    assert broken("texts_incomplete_total", reason="client_disconnected") == 1


async def test_uploads_are_counted_and_how_they_end(serve: Serve, room: str) -> None:
    async with serve() as gateway:
        whole = await gateway.begin_upload(room, "bob", b"Hel")
        under_way = await _scrape(gateway)
        await whole.patch(3, b"lo", "?1")
        cancelled = await gateway.begin_upload(room, "bob", b"Hel")
        await cancelled.delete()
        over = await _once(gateway, lambda now: not now("uploads"))

    assert (under_way("uploads"), under_way("open_texts")) == (1, 1)
    assert over("uploads_ended_total", outcome="complete") == 1
    assert over("uploads_ended_total", outcome="cancelled") == 1
    assert over("texts_sent_total") == 1
    assert over("texts_incomplete_total", reason="cancelled") == 1
    assert over("text_bytes_total") == 8


async def test_requests_are_counted_by_route_and_never_by_what_clients_make_up(
    serve_memory: Serve, room: str
) -> None:
    async with serve_memory() as gateway:
        await gateway.client.get("/made/up")
        await gateway.client.request("PROPFIND", "/livez")
        await gateway.client.get(f"/rooms/{room}/topics")
        scraped = await _scrape(gateway)

    counted = "http_requests_total"
    assert scraped(counted, method="GET", route="other", code="404") == 1
    assert scraped(counted, method="other", route="/livez", code="405") == 1
    assert scraped(counted, method="GET", route="/rooms/{room}/topics", code="401") == 1


async def test_nobody_is_named(serve: Serve) -> None:
    async with serve() as gateway:
        async with gateway.events("secret-room", "secret-bob", "secret-topic") as bob:
            await bob.until("gateway.opened")
            text = {"topic": "secret-topic", "stream_id": "secret-id", "attr.secret-name": "secret"}
            await gateway.post("secret-room", "secret-bob", "secret", **text)
            await bob.until("stream.closed")
            await gateway.begin_upload("secret-room", "secret-bob", b"secret")
        async with gateway.admin_events("secret-room", "secret-topic"):
            pass
        scraped = await _scrape(gateway)

    assert scraped("texts_sent_total") == 1
    assert "secret" not in scraped.text


async def test_the_labels_are_the_same_however_many_rooms_there_are(serve_memory: Serve) -> None:
    async with serve_memory() as gateway:
        await gateway.post("room-0", "bob", "hi")
        await _scrape(gateway)
        one = await _scrape(gateway)
        for number in range(1, 20):
            await gateway.post(f"room-{number}", f"bob-{number}", "hi", topic=f"topic-{number}")
        many = await _scrape(gateway)

    assert many._numbers.keys() == one._numbers.keys()
    assert many("texts_sent_total") == 20


async def test_the_documentation_has_every_metric_and_its_labels(
    serve_memory: Serve, room: str
) -> None:
    async with serve_memory() as gateway:
        async with gateway.events(room, "bob") as bob, gateway.upload(room, "bob") as upload:
            upload.send(b"half")
            await bob.until("stream.chunk")
            upload.break_off()
            await bob.until("stream.closed")
        scraped = await _once(gateway, lambda now: "texts_incomplete_total{" in now.text)

    exposed = {
        (
            re.sub("_(bucket|count|sum)$", "", name.removeprefix(PREFIX)),
            frozenset(label for label, _ in labels) - {"le"},
        )
        for name, labels in scraped._numbers
        if name.startswith(PREFIX)
    }
    section = DEPLOYMENT.read_text().partition("\n## Metrics\n")[2].partition("\n## ")[0]
    documented = {
        (name, frozenset(labels.split(", ")) if labels else frozenset())
        for row in re.findall(r"^\| (`.*?) \| (?:counter|gauge|histogram)", section, re.MULTILINE)
        for name, labels in re.findall(r"`(\w+)(?:{(.*?)})?`", row)
    }
    assert exposed == documented


async def test_what_agents_tell_that_becomes_no_event_is_counted(
    serve_memory: Serve, room: str
) -> None:
    async with serve_memory() as gateway, gateway.events(room, "bob") as bob:
        await bob.until("gateway.opened")
        deaf = Listener(_deaf, _deaf, _deaf, _deaf)
        carol = await gateway.rooms.join(room, "carol", "", (), deaf)
        assert isinstance(carol, MemoryRoom)
        carol.tell_of_session(b"")
        carol.kind = "agent"
        carol.tell_of_session(b"\xff\xff")
        scraped = await _scrape(gateway)

    ignored = "agent_messages_ignored_total"
    assert scraped(ignored, reason="not_an_agent") == 1
    assert scraped(ignored, reason="malformed") == 1


def _deaf(*_: object) -> None:
    pass

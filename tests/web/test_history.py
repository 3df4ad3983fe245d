"""GET /rooms/{room}/topics/{topic}/streams and /rooms/{room}/streams/{stream_id}."""

import asyncio
from typing import Any

import httpx
import pytest

from tests.conftest import Serve
from tests.running_gateway import DEADLINE, RunningGateway


async def _page(
    gateway: RunningGateway, room: str, identity: str = "bob", topic: str = "lk.chat", **query: Any
) -> dict[str, Any]:
    answer = await _get(gateway, room, f"topics/{topic}/streams", identity, **query)
    assert answer.status_code == 200, answer.text
    page: dict[str, Any] = answer.json()
    return page


async def _get(
    gateway: RunningGateway, room: str, path: str, identity: str = "bob", **query: Any
) -> httpx.Response:
    return await gateway.client.get(
        f"/rooms/{room}/{path}", params=query, headers=gateway.bearer(identity, room)
    )


def _texts(page: dict[str, Any]) -> list[str]:
    return [stream["text"] for stream in page["streams"]]


async def test_a_page_that_loads_late_finds_the_texts_and_follows_from_there(
    serve: Serve, room: str
) -> None:
    async with serve() as gateway, gateway.events(room, "bob") as bob:
        await bob.until("gateway.opened")
        sent = (
            await gateway.post(room, "carol", "first", **{"attr.mood": "good", "generated": "1"})
        ).json()
        await gateway.post(room, "bob", "second")
        for _ in range(2):
            await bob.until("stream.closed")
        page = await _page(gateway, room)
        async with gateway.events(room, "bob", last_event_id=page["position"]) as later:
            await later.until("gateway.opened")
            await gateway.post(room, "carol", "third")
            following = await later.text()

    assert _texts(page) == ["second", "first"]
    assert page["next"] is None
    assert page["streams"][0]["local"] is True
    assert page["streams"][1] == {
        "stream_id": sent["stream_id"],
        "topic": "lk.chat",
        "participant_identity": "carol",
        "timestamp": sent["timestamp"],
        "size": 5,
        "mime_type": "text/plain",
        "attributes": {"mood": "good"},
        "destination_identities": None,
        "reply_to_stream_id": None,
        "attached_stream_ids": [],
        "generated": True,
        "operation": "create",
        "version": 0,
        "local": False,
        "complete": True,
        "reason": None,
        "chunks": 1,
        "text": "first",
        "state": "closed",
        "first_index": 0,
    }
    assert following.text == "third"


async def test_pages_go_back_to_the_oldest_and_miss_none_though_texts_come_meanwhile(
    serve_memory: Serve, room: str
) -> None:
    async with serve_memory() as gateway:
        for number in range(5):
            await gateway.post(room, "bob", str(number))
        first = await _page(gateway, room, limit=2)
        await gateway.post(room, "bob", "new")
        second = await _page(gateway, room, limit=2, before=first["next"])
        third = await _page(gateway, room, limit=2, before=second["next"])

    assert [_texts(page) for page in (first, second, third)] == [["4", "3"], ["2", "1"], ["0"]]
    assert third["next"] is None


async def test_a_topic_shows_its_own_texts_and_is_received_from_then_on(
    serve: Serve, room: str
) -> None:
    async with serve() as gateway:
        await gateway.post(room, "bob", "on lk.chat")
        before = await _page(gateway, room, topic="news")
        await gateway.post(room, "carol", "on news", topic="news")
        async with gateway.events(room, "bob", "news", last_event_id=before["position"]) as bob:
            heard = await bob.text()
        after = await _page(gateway, room, topic="news")

    assert before["streams"] == []
    assert heard.text == "on news"
    assert _texts(after) == ["on news"]


async def test_an_open_text_is_there_as_far_as_it_is(serve: Serve, room: str) -> None:
    async with (
        serve() as gateway,
        gateway.events(room, "bob") as bob,
        gateway.upload(room, "carol") as upload,
    ):
        await bob.until("gateway.opened")
        upload.send(b"half")
        stream_id = (await bob.until("stream.chunk")).data["stream_id"]
        half = (await _get(gateway, room, f"streams/{stream_id}")).json()
        upload.send(b" and half")
        upload.finish()
        await bob.until("stream.closed")
        whole = (await _get(gateway, room, f"streams/{stream_id}")).json()

    told = ("text", "state", "complete", "chunks", "size")
    assert [half[name] for name in told] == ["half", "open", None, 1, None]
    assert [whole[name] for name in told] == ["half and half", "closed", True, 2, 13]


async def test_of_an_open_text_that_is_longer_than_the_log_the_newest_part_is_there(
    serve_memory: Serve, room: str
) -> None:
    async with (
        serve_memory(log_events=3) as gateway,
        gateway.events(room, "bob") as bob,
        gateway.upload(room, "carol") as upload,
    ):
        await bob.until("gateway.opened")
        upload.send(b"0")
        stream_id = (await bob.until("stream.chunk")).data["stream_id"]
        for number in range(1, 5):
            upload.send(str(number).encode())
            await bob.until("stream.chunk")
        kept = (await _get(gateway, room, f"streams/{stream_id}")).json()
        upload.finish()
        await bob.until("stream.closed")
        ended = await _get(gateway, room, f"streams/{stream_id}")

    assert (kept["text"], kept["first_index"], kept["chunks"]) == ("234", 2, 5)
    assert (ended.status_code, ended.json()["code"]) == (404, "stream_not_found")


async def test_of_an_id_that_is_used_again_it_is_the_latest_and_of_several_senders_one_is_named(
    serve: Serve, room: str
) -> None:
    async with serve() as gateway, gateway.events(room, "bob") as bob:
        await bob.until("gateway.opened")
        for identity, text in (("carol", "Helo"), ("carol", "Hello"), ("dave", "Hi")):
            await gateway.post(room, identity, text, stream_id="note-1")
            await bob.until("stream.closed")
        ambiguous = await _get(gateway, room, "streams/note-1")
        named = await _get(gateway, room, "streams/note-1", participant_identity="carol")
        nobody = await _get(gateway, room, "streams/note-1", participant_identity="erin")
        page = await _page(gateway, room)

    assert (ambiguous.status_code, ambiguous.json()["code"]) == (409, "stream_ambiguous")
    assert named.json()["text"] == "Hello"
    assert (nobody.status_code, nobody.json()["code"]) == (404, "stream_not_found")
    assert _texts(page) == ["Hi", "Hello", "Helo"]


async def test_who_reads_unseen_finds_what_the_observer_has_heard(serve: Serve, room: str) -> None:
    async with serve() as gateway, gateway.admin_events(room) as admin:
        await gateway.post(room, "carol", "heard")
        await admin.until("stream.closed")
        answer = await gateway.client.get(
            f"/rooms/{room}/topics/lk.chat/streams",
            params={"presence": "none"},
            headers=gateway.admin_bearer(room),
        )

    assert _texts(answer.json()) == ["heard"]


async def test_a_page_ends_where_its_texts_are_long(serve_memory: Serve, room: str) -> None:
    async with serve_memory() as gateway:
        for letter in "abc":
            await gateway.post(room, "bob", letter * 700_000)
        first = await _page(gateway, room)
        second = await _page(gateway, room, before=first["next"])

    assert [text[0] for text in _texts(first)] == ["c", "b"]
    assert [text[0] for text in _texts(second)] == ["a"]
    assert second["next"] is None


async def test_a_text_that_broke_off_says_so(serve: Serve, room: str) -> None:
    async with serve() as gateway, gateway.events(room, "bob") as bob:
        await bob.until("gateway.opened")
        async with gateway.upload(room, "carol") as upload:
            upload.send(b"half")
            await bob.until("stream.chunk")
            upload.break_off()
        await bob.until("stream.closed")
        (stream,) = (await _page(gateway, room))["streams"]

    assert (stream["state"], stream["complete"]) == ("closed", False)
    assert (stream["reason"], stream["text"]) == ("client_disconnected", "half")


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("topics/lk.chat/streams?limit=101", 400, "invalid_parameter"),
        ("topics/lk.chat/streams?limit=-1", 400, "invalid_parameter"),
        ("topics/lk.chat/streams?limit=x", 400, "invalid_parameter"),
        ("topics/lk.chat/streams?before=7", 400, "invalid_parameter"),
        ("topics/lk.chat/streams?presence=some", 400, "invalid_parameter"),
        ("topics/lk.chat/streams?after=x", 400, "invalid_parameter"),
        ("topics/lk.agent.session/streams", 403, "topic_reserved"),
        ("streams/s?limit=1", 400, "invalid_parameter"),
        (f"streams/{'s' * 257}", 400, "invalid_parameter"),
    ],
)
async def test_what_is_wrong_with_a_request_is_said_and_joins_nothing(
    serve_memory: Serve, room: str, path: str, status: int, code: str
) -> None:
    async with serve_memory() as gateway:
        headers = gateway.bearer("bob", room)
        answer = await gateway.client.get(f"/rooms/{room}/{path}", headers=headers)
        head = await gateway.client.head(f"/rooms/{room}/{path}", headers=headers)

    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert head.status_code == status
    assert gateway.hub.connections == 0


async def test_a_token_that_may_not_read_is_refused(serve_memory: Serve, room: str) -> None:
    async with serve_memory() as gateway:
        headers = gateway.bearer("bob", room, can_subscribe=False)
        for path in ("topics/lk.chat/streams", "streams/s"):
            answer = await gateway.client.get(f"/rooms/{room}/{path}", headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (403, "missing_grant")


@pytest.mark.parametrize("path", ["topics/lk.chat/streams", "streams/note-1"])
async def test_head_joins_nothing(serve_memory: Serve, room: str, path: str) -> None:
    async with serve_memory() as gateway:
        answer = await gateway.client.head(
            f"/rooms/{room}/{path}", headers=gateway.bearer("bob", room)
        )

    assert answer.status_code == 200
    assert gateway.hub.connections == 0


async def test_all_logs_together_keep_no_more_than_the_process_may(
    serve_memory: Serve, room: str
) -> None:
    """The one that keeps most gives way, and the others keep what they have."""
    async with serve_memory(log_total_bytes=40_000) as gateway:
        await gateway.post(f"{room}-small", "bob", "small")
        for number in range(50):
            await gateway.post(room, "bob", f"{number}" + "x" * 1_000)
        small = await _page(gateway, f"{room}-small")
        large = await _page(gateway, room, limit=100)
        logs = [slot.connection.log for slot in gateway.hub._slots.values()]

    assert _texts(small) == ["small"]
    assert 20 < len(large["streams"]) < 30
    assert sum(log.size for log in logs) <= 40_000


async def test_what_is_too_old_goes_also_where_nothing_happens(
    serve_memory: Serve, room: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.hub.SWEEP", 0.05)
    async with (
        serve_memory(log_age=1.0, heartbeat=0.1) as gateway,
        gateway.events(room, "bob") as bob,
    ):
        await bob.until("gateway.opened")
        await gateway.post(room, "bob", "old")
        (log,) = (slot.connection.log for slot in gateway.hub._slots.values())
        before = log.size
        async with asyncio.timeout(DEADLINE):
            while log.size:
                await bob._block()  # a heartbeat

    assert before > 0

"""A participant by WebRTC in a browser, and LiveKit's server between it and others."""

import pytest
from livekit import rtc

from tests.conftest import InBrowser
from tests.rooms.test_livekit import SdkParticipant
from tests.running_gateway import RunningGateway, livekit_token
from tools.livekit_server import LiveKitServer

pytestmark = [pytest.mark.needs("chromium"), pytest.mark.needs("npm")]


async def test_a_browser_and_an_sdk_participant_exchange_texts(
    browser_participant: InBrowser, livekit: LiveKitServer, room: str
) -> None:
    sdk = SdkParticipant()
    async with browser_participant(room, "bob", topics=["lk.chat", "news"]) as bob:
        await sdk.room.connect(livekit.url, livekit_token(livekit, room, "sdk"))
        await bob.until_present("sdk")
        stream_id = await bob.send_text("from a browser ü", to=["sdk"], attributes={"a": "1"})
        from_browser = await sdk.next()
        await sdk.room.local_participant.send_text("from the SDK 👋", topic="news")
        from_sdk = await bob.next_text()
        seen = set(sdk.room.remote_participants), await bob.participants()
        await sdk.room.disconnect()

    assert seen == ({"bob"}, {"sdk"})
    assert stream_id
    assert from_browser["sender"] == "bob"
    assert from_browser["text"] == "from a browser ü"
    assert from_browser["attributes"] == {"a": "1"}
    assert (from_sdk.sender, from_sdk.topic, from_sdk.text) == ("sdk", "news", "from the SDK 👋")
    assert bob.received == [from_sdk]


async def test_a_browser_is_told_why_it_is_no_longer_in_the_room(
    browser_participant: InBrowser, livekit: LiveKitServer, room: str
) -> None:
    other = rtc.Room()
    async with browser_participant(room, "bob") as bob:
        await other.connect(livekit.url, livekit_token(livekit, room, "bob"))
        reason = await bob.disconnected()
        await other.disconnect()

    assert reason == "DUPLICATE_IDENTITY"


async def test_a_browser_reads_what_is_posted(
    browser_participant: InBrowser, gateway: RunningGateway, room: str
) -> None:
    async with browser_participant(room, "bob") as bob:
        await gateway.post(room, "alice", "hello", **{"attr.a": "1"})
        text = await bob.next_text()
        assert await bob.participants() == {"alice"}

    assert (text.sender, text.text, text.attributes) == ("alice", "hello", {"a": "1"})

"""The page, driven in Chromium against a real gateway."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from livekit import api
from playwright.async_api import (
    Browser,
    ConsoleMessage,
    Page,
    Request,
    Route,
    expect,
)

from gateway.agent_session import helper
from gateway.agent_session.decoding import DECODERS
from gateway.web.operations import PAGE
from tests.conftest import Play
from tests.running_gateway import DEADLINE, RunningGateway

pytestmark = pytest.mark.needs("chromium")

expect.set_options(timeout=DEADLINE * 1000)

REFUSALS = ("Failed to load resource", "EventSource's response has a")
"""What Chromium itself logs of an answer that is not 200; the page shows it to the reader."""

HOSTILE = '<img src=x onerror="document.title=1"><script>document.title=2</script>'


@pytest.fixture
async def page(browser: Browser, gateway: RunningGateway) -> AsyncIterator[Page]:
    """A page of a browser profile of its own. No error and no violation of the policy passes."""
    wrong: list[str] = []

    def on_console(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not message.text.startswith(REFUSALS):
            wrong.append(message.text)

    context = await browser.new_context()
    context.set_default_timeout(DEADLINE * 1000)
    page = await context.new_page()
    page.on("console", on_console)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    yield page
    # Its event stream ends before the gateway does.
    await context.close()
    assert wrong == []


async def _open(page: Page, gateway: RunningGateway, token: str) -> None:
    await page.goto(f"{gateway.url}/#token={token}")


async def _live(page: Page, gateway: RunningGateway, room: str, **grants: Any) -> None:
    """Opens the page as alice, until it reads."""
    await _open(page, gateway, gateway.token("alice", room, **grants))
    await expect(page.locator("#state")).to_have_text("live")


async def _live_with_agent(page: Page, gateway: RunningGateway, room: str) -> None:
    await _open(page, gateway, f"{gateway.token('alice', room)}&agent=1")
    await expect(page.locator("#state")).to_have_text("live")


async def _send(page: Page, text: str) -> None:
    await page.get_by_label("Text", exact=True).fill(text)
    await page.get_by_label("Text", exact=True).press("Enter")


Pieces = asyncio.Queue[bytes | None]
"""What is still to be written of a body; None is its end."""


async def _body(pieces: Pieces) -> AsyncIterator[bytes]:
    while (piece := await pieces.get()) is not None:
        yield piece


def _events(*events: tuple[str, dict[str, Any]]) -> str:
    return "".join(
        f"event: {name}\ndata: {json.dumps({'type': name, **data})}\n\n" for name, data in events
    )


def _event_requests(page: Page) -> list[Request]:
    seen: list[Request] = []
    page.on("request", lambda request: seen.append(request) if "/events?" in request.url else None)
    return seen


async def test_a_text_is_shown_while_it_is_being_written(
    page: Page, gateway: RunningGateway, room: str
) -> None:
    pieces: Pieces = asyncio.Queue()
    await _live(page, gateway, room)
    await expect(page.locator("#who")).to_contain_text(f"Room {room}, as alice")
    text = page.locator(".text")
    async with asyncio.TaskGroup() as tasks:
        sending = tasks.create_task(
            gateway.post(room, "bob", _body(pieces), **{"attr.mood": "cheerful <b>"})
        )
        pieces.put_nowait(b"Once upon")
        await expect(text.locator(".body")).to_have_text("Once upon")
        await expect(text).to_contain_text("still being written")
        pieces.put_nowait(b" a time")
        await expect(text.locator(".body")).to_have_text("Once upon a time")
        await expect(text).to_contain_text("still being written")
        pieces.put_nowait(None)
    assert (await sending).status_code == 200

    await expect(text).to_contain_text("complete")
    await expect(text).to_contain_text("mood=cheerful <b>")
    await expect(text.locator("b").first).to_have_text("bob")
    assert await text.count() == 1

    await page.get_by_role("radio", name="Events").check()
    names = page.locator(".event b")
    await expect(names).to_have_text(
        ["gateway.opened", "stream.opened", "stream.chunk", "stream.chunk", "stream.closed"]
    )


async def test_what_the_page_sends_is_its_own_and_reaches_others(
    page: Page, gateway: RunningGateway, room: str
) -> None:
    await _live(page, gateway, room)
    await _send(page, "Is anybody there?")
    answer = page.locator("#answer")
    await expect(answer).to_have_text("Accepted, but nobody else is in the room yet.")

    async with gateway.events(room, "bob") as bob:
        await bob.until("gateway.opened")
        await page.get_by_label("To", exact=True).fill("bob, carol")
        await _send(page, "Grüße, Bob")
        assert (await bob.until("stream.chunk")).data["text"] == "Grüße, Bob"
    await expect(answer).to_have_text("Accepted; 1 listener.")
    await expect(page.get_by_label("Text", exact=True)).to_have_value("")
    own = page.locator(".text.own")
    await expect(own.locator(".body")).to_have_text(["Is anybody there?", "Grüße, Bob"])
    await expect(own.last).to_contain_text("alice (you)to bob, carol")


async def test_a_text_that_breaks_off_is_shown_as_incomplete(
    page: Page, gateway: RunningGateway, room: str
) -> None:
    pieces: Pieces = asyncio.Queue()
    await _live(page, gateway, room)
    async with asyncio.TaskGroup() as tasks:
        sending = tasks.create_task(gateway.post(room, "bob", _body(pieces)))
        pieces.put_nowait(b"Half a ")
        await expect(page.locator(".text .body")).to_have_text("Half a ")
        pieces.put_nowait(b"\xff")
        pieces.put_nowait(None)
    assert (await sending).status_code == 400
    await expect(page.locator(".text .body")).to_have_text("Half a ")
    await expect(page.locator(".text .note")).to_have_text("incomplete, invalid_text")


async def test_a_reload_shows_the_conversation_again(
    page: Page, gateway: RunningGateway, room: str
) -> None:
    await _live(page, gateway, room)
    await gateway.post(room, "bob", "Still here?")
    await expect(page.locator(".text .body")).to_have_text("Still here?")
    await page.reload()
    await expect(page.locator(".text .body")).to_have_text("Still here?")


async def test_hostile_names_and_texts_are_shown_as_text(
    page: Page, gateway: RunningGateway, room: str
) -> None:
    await _live(page, gateway, room)
    await gateway.post(room, HOSTILE, HOSTILE, **{f"attr.{HOSTILE}": HOSTILE})
    await expect(page.locator(".text .body")).to_have_text(HOSTILE)
    await expect(page.locator(".text b")).to_have_text(HOSTILE)
    await expect(page.locator(".text .attributes")).to_have_text(f"{HOSTILE}={HOSTILE}")
    await page.get_by_role("radio", name="Events").check()
    await expect(page.locator(".event code", has_text="onerror")).to_have_count(3)
    assert await page.locator("main img, main script").count() == 0
    assert await page.title() == "LiveKit HTTP/SSE gateway"


async def test_a_room_and_a_topic_may_have_any_name(page: Page, gateway: RunningGateway) -> None:
    room = "Müller's <room>/1?&#"
    topic = "it's/a topic?&%"
    await page.goto(gateway.url)
    await page.get_by_label("Topic").fill(topic)
    await page.get_by_label("LiveKit access token").fill(gateway.token("zoë", room))
    await expect(page.locator("#who")).to_contain_text(f"Room {room}, as zoë")
    await page.get_by_role("button", name="Connect").click()
    await expect(page.locator("#state")).to_have_text("live")
    await _send(page, "from within")
    await expect(page.locator(".text.own .body")).to_have_text("from within")

    await page.get_by_text("The same with curl").click()
    command = await page.locator("#curl-send").inner_text()
    sending = await asyncio.create_subprocess_exec(
        "sh", "-c", f"{command} --silent --max-time 5", stdout=asyncio.subprocess.PIPE
    )
    told, _ = await sending.communicate()
    assert json.loads(told)["topic"] == topic
    await expect(page.locator(".text.own .body")).to_have_text(["from within", "Hello"])


async def test_no_token_and_a_malformed_one_are_explained(
    page: Page, gateway: RunningGateway
) -> None:
    asked = _event_requests(page)
    await page.goto(gateway.url)
    await expect(page.get_by_text("python -m gateway token --room demo")).to_be_visible()
    await page.goto(f"{gateway.url}/#token=not-a-token")
    problem = page.get_by_role("alert")
    await expect(problem).to_contain_text("This is not a LiveKit access token")
    await expect(page.get_by_text("python -m gateway token --room demo")).to_be_visible()
    await page.get_by_role("button", name="Connect").click()
    await expect(page.get_by_label("LiveKit access token")).to_be_focused()
    await expect(page.locator("#state")).to_have_text("not connected")
    assert asked == []


async def test_an_expired_token_is_explained_and_a_new_one_connects(
    page: Page, gateway: RunningGateway, room: str
) -> None:
    settings = gateway.settings
    expired = (
        api.AccessToken(settings.livekit_api_key, settings.livekit_api_secret)
        .with_identity("alice")
        .with_grants(api.VideoGrants(room_join=True, room=room))
        .with_ttl(timedelta(hours=-1))
        .to_jwt()
    )
    await _open(page, gateway, expired)
    await expect(page.get_by_role("alert")).to_contain_text("The token has expired")
    # The clock that counts is the gateway's.
    await page.get_by_role("button", name="Connect").click()
    await expect(page.locator("#notice")).to_contain_text("401: The token has expired")
    await _live(page, gateway, room)
    await expect(page.get_by_role("alert")).to_be_hidden()


async def test_a_refusal_is_shown_with_the_gateway_s_words(
    page: Page, gateway: RunningGateway, room: str
) -> None:
    grants = api.VideoGrants(room_join=True, room=room)
    token = api.AccessToken(gateway.settings.livekit_api_key, "another secret, of 32 bytes or so")
    await _open(page, gateway, token.with_identity("alice").with_grants(grants).to_jwt())
    await expect(page.locator("#notice")).to_contain_text(
        "401: The token was signed with another API secret."
    )
    await expect(page.locator("#state")).to_have_text("closed")
    await expect(page.get_by_role("button", name="Try again")).to_be_visible()


async def test_a_text_that_is_refused_stays_in_its_box(
    page: Page, gateway: RunningGateway, room: str
) -> None:
    await _live(page, gateway, room, can_publish_data=False)
    await _send(page, "May I?")
    await expect(page.locator("#answer")).to_contain_text(
        "Not sent. 403: The token does not allow sending"
    )
    await expect(page.get_by_label("Text", exact=True)).to_have_value("May I?")


async def test_who_is_removed_does_not_come_back_unasked(
    page: Page, gateway: RunningGateway, room: str
) -> None:
    asked = _event_requests(page)
    await _live(page, gateway, room)
    settings = gateway.settings
    async with api.LiveKitAPI(
        settings.livekit_url, settings.livekit_api_key, settings.livekit_api_secret
    ) as livekit:
        await livekit.room.remove_participant(
            api.RoomParticipantIdentity(room=room, identity="alice")
        )
    await expect(page.locator("#notice")).to_contain_text("You were removed from the room.")
    await expect(page.locator("#state")).to_have_text("closed")
    await page.get_by_role("button", name="Try again").click()
    await expect(page.locator("#state")).to_have_text("live")
    assert len(asked) == 2


async def test_a_busy_gateway_is_asked_again_when_it_said(
    page: Page, gateway: RunningGateway, room: str
) -> None:
    refused = 0

    async def refuse(route: Route) -> None:
        nonlocal refused
        refused += 1
        problem = {"status": 503, "code": "too_many_event_streams", "detail": "Too many."}
        await route.fulfill(
            status=503,
            headers={"Content-Type": "application/problem+json", "Retry-After": "1"},
            body=json.dumps(problem),
        )

    # The EventSource, and the question why it failed.
    await page.route("**/events?*", refuse, times=2)
    await _open(page, gateway, gateway.token("alice", room))
    await expect(page.locator("#notice")).to_contain_text("503: Too many. Trying again in 1 s.")
    await expect(page.locator("#state")).to_have_text("live")
    await expect(page.locator("#notice")).to_be_hidden()
    assert refused == 2


async def test_what_has_ended_for_good_is_not_asked_for_again(
    page: Page, gateway: RunningGateway, room: str
) -> None:
    asked = _event_requests(page)
    await page.route("**/events?*", lambda route: route.fulfill(status=204), times=2)
    await _open(page, gateway, gateway.token("alice", room))
    await expect(page.locator("#notice")).to_contain_text("The gateway has ended this for good")
    await page.get_by_role("button", name="Try again").click()
    await expect(page.locator("#state")).to_have_text("live")
    assert len(asked) == 3


async def test_a_gap_and_a_restart_are_told(page: Page, gateway: RunningGateway, room: str) -> None:
    stream = {"stream_id": "s", "topic": "lk.chat", "participant_identity": "bob"}
    position = f"{'ab' * 8}-1"
    body = _events(
        ("gateway.opened", {"presence": "participant", "identity": "alice", "position": position}),
        ("stream.opened", {**stream, "timestamp": 8.64e18, "attributes": None, "local": False}),
        ("stream.chunk", {**stream, "index": 3, "text": "the middle"}),
        ("gateway.gap", {"reason": "restarted", "from": "a-1", "to": "b-2"}),
        ("gateway.closing", {"reason": "drain", "reconnect": True}),
    )

    async def fulfill(route: Route) -> None:
        await route.fulfill(body=body, headers={"Content-Type": "text/event-stream"})

    asked = _event_requests(page)
    await page.route("**/events?*", fulfill, times=1)
    await _open(page, gateway, gateway.token("alice", room))
    await expect(page.locator(".gap")).to_have_text(
        "Something may be missing here (restarted), from a-1 to b-2."
    )
    await expect(page.locator(".text .note")).to_have_text(
        "incomplete, its end may be missing, a part of it is missing"
    )
    await expect(page.locator("#notice-text")).to_have_text(
        "The gateway is restarting. Coming back by itself."
    )
    await expect(page.locator("#state")).to_have_text("live")
    assert len(asked) == 2


async def test_disconnecting_and_coming_back_misses_and_repeats_nothing(
    page: Page, gateway: RunningGateway, room: str
) -> None:
    await _live(page, gateway, room)
    await gateway.post(room, "bob", "one")
    await expect(page.locator(".text .body")).to_have_text(["one"])
    await page.get_by_role("button", name="Disconnect").click()
    await expect(page.locator("#state")).to_have_text("not connected")
    await gateway.post(room, "bob", "two")
    await page.get_by_role("button", name="Connect").click()
    await expect(page.locator(".text .body")).to_have_text(["one", "two"])
    await expect(page.locator(".gap")).to_have_count(0)


async def test_the_list_follows_its_end_unless_one_has_scrolled_up(
    page: Page, gateway: RunningGateway, room: str
) -> None:
    at_end = """list => new Promise(done => {
        const look = () => list.scrollTop + list.clientHeight >= list.scrollHeight - 1 ? done() : requestAnimationFrame(look);
        look();
    })"""
    await _live(page, gateway, room)
    texts = page.get_by_role("log")
    await gateway.post(room, "bob", "\n".join(map(str, range(100))))
    await expect(page.locator(".text")).to_have_count(1)
    async with asyncio.timeout(DEADLINE):
        await texts.evaluate(at_end)
    # When the browser has told of the scrolling, the page knows.
    await texts.evaluate(
        "list => new Promise(done => { list.addEventListener('scroll', done); list.scrollTop = 0; })"
    )
    await gateway.post(room, "bob", "below")
    await expect(page.locator(".text")).to_have_count(2)
    # Following happens in the next frame; in the one after it would be seen.
    frames = "list => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(list.scrollTop))))"
    assert await texts.evaluate(frames) == 0


# Agents


async def test_an_agent_s_answer_is_read_beside_its_state(
    page: Page, gateway: RunningGateway, room: str, play: Play
) -> None:
    await _live_with_agent(page, gateway, room)
    state = page.locator("#agent-state")
    await expect(state).to_have_text("no agent yet")
    async with play(room) as session:
        await expect(state).to_have_text("agent: listening")
        await session.tell("hold")
        await _send(page, "hello there")
        answer = page.locator(".text:not(.own)")
        await expect(answer.locator(".body")).to_have_text("You ")
        await expect(answer).to_contain_text("still being written")
        await expect(state).to_have_text("agent: speaking")
        await session.tell("release")
        await expect(answer.locator(".body")).to_have_text("You said: hello there ")
        await expect(state).to_have_text("agent: listening")
        await expect(page.locator("#agents")).to_have_text("agentlisteninguser listening")
        await expect(page.locator(".text.own .body")).to_have_text(["hello there"])
        await expect(page.locator("#answer")).to_have_text("Accepted; 1 listener.")

        await session.tell("close")
        await expect(state).to_have_text("agent: session closed")
        await expect(page.locator(".gap")).to_have_text(
            "The agent: session closed, user_initiated."
        )
    await expect(page.locator("#agents .note")).to_have_text("session closed: user_initiated")


async def test_an_agent_s_tools_and_the_usage_of_its_model_are_seen(
    page: Page, gateway: RunningGateway, room: str, play: Play
) -> None:
    await _live_with_agent(page, gateway, room)
    tools = page.locator("#tools > li")
    async with play(room) as session:
        await session.script(
            "llm",
            {"calls": [{"name": "look_up", "query": HOSTILE}]},
            {"text": "done"},
            {"calls": [{"name": "fail"}]},
            {"text": "failed"},
            {"calls": [{"name": "search_long", "query": "cats"}]},
        )
        await _send(page, "look it up")
        await expect(tools.locator(".note")).to_have_text(["done"])
        await expect(tools.locator("b")).to_have_text(f"look_up {json.dumps({'query': HOSTILE})}")
        await expect(tools.locator(".result")).to_have_text(f"found {HOSTILE}")
        assert await page.locator("main img, main script").count() == 0
        await expect(page.locator("#models")).to_have_text(
            "llm scripted22 input tokens · 14 output tokens"
        )

        await _send(page, "fail")
        await expect(tools.locator(".note")).to_have_text(["failed", "done"])
        await expect(tools.first.locator(".result")).to_have_text("it does not work")

        await _send(page, "search for long")
        await expect(tools.first.locator(".result")).to_have_text(
            ["searching cats", "found cats in the end"]
        )
        await expect(tools.locator(".note")).to_have_text(["done", "failed", "done"])

    await page.reload()
    await expect(tools.locator(".note")).to_have_text(["done", "failed", "done"])


async def test_an_agent_s_errors_and_models_that_go_and_come_back_are_seen(
    page: Page, gateway: RunningGateway, room: str, play: Play
) -> None:
    await _live_with_agent(page, gateway, room)
    broken = {"error": {"status_code": 503, "body": {"secret": "of the provider"}}}
    models, errors = page.locator("#models > li"), page.locator("#errors > li")
    async with play(room, fallback=True) as session:
        # The request, and the question whether it is well again.
        await session.script("llm", broken, broken)
        await _send(page, "who answers?")
        await expect(page.locator(".text:not(.own) .body")).to_have_text("You said: who answers? ")
        await expect(models.filter(has_text="llm scripted").locator(".note")).to_have_text(
            "out of order"
        )
        await expect(errors.locator(".note")).to_have_text(["out of order"])
        await _send(page, "and now?")
        await expect(errors.locator(".note")).to_have_text(["available again", "out of order"])

        await session.script("llm", *[broken] * 4)
        await session.script("llm-2", *[broken] * 4)
        await _send(page, "nobody answers")
        failure = errors.filter(has=page.get_by_text("not recoverable", exact=True))
        await expect(failure).to_contain_text("llm_error of llm")
        await expect(failure).to_contain_text("all LLMs failed")
        await expect(errors.get_by_text("recoverable", exact=True)).to_have_count(1)
        await expect(page.locator(".gap")).to_contain_text("The agent could not answer: all LLMs")
    assert "of the provider" not in await page.content()


async def test_an_agent_that_is_there_already_is_found(
    page: Page, gateway: RunningGateway, room: str, play: Play
) -> None:
    async with play(room):
        await _live(page, gateway, room)
        await expect(page.locator("#agent")).to_be_checked()
        await expect(page.locator("#agent-state")).to_have_text("agent: listening")
        await page.get_by_text("The same with curl").click()
        asked = f"/rooms/{room}/events?topic=lk.chat&topic=lk.transcription&agent=1&participants=1"
        await expect(page.locator("#curl-read")).to_contain_text(f"'{gateway.url}{asked}'")

        await page.locator("#agent").uncheck()
        await expect(page.locator("#doings")).to_be_hidden()
        await expect(page.locator("#agent-state")).to_be_hidden()
        await _send(page, "is it gone?")
        await expect(page.locator(".text.own .body")).to_have_text("is it gone?")
        await expect(page.locator("#agent")).not_to_be_checked()


async def test_on_a_narrow_page_what_the_agent_does_is_a_view_of_its_own(
    page: Page, gateway: RunningGateway, room: str
) -> None:
    await page.set_viewport_size({"width": 390, "height": 844})
    await _live_with_agent(page, gateway, room)
    texts, doings = page.locator("#texts"), page.locator("#doings")
    await expect(doings).to_be_hidden()
    await page.get_by_role("radio", name="Agent").check()
    await expect(doings).to_be_visible()
    await expect(texts).to_be_hidden()
    assert await page.evaluate("document.documentElement.scrollWidth") == 390
    await page.set_viewport_size({"width": 1280, "height": 800})
    await expect(doings).to_be_visible()
    await expect(texts).to_be_attached()
    await expect(page.get_by_role("radio", name="Agent")).to_be_hidden()


async def test_what_is_heard_is_corrected_in_place_and_a_gap_leaves_a_tool_unknown(
    page: Page, gateway: RunningGateway, room: str
) -> None:
    agent = {"participant_identity": "agent", "created_at": 1.0}
    heard = {"topic": "lk.transcription", "participant_identity": "alice"}
    opened = {**heard, "timestamp": 1_000, "attributes": {"lk.segment_id": "SG_1"}, "local": False}
    call = {"call_id": "c", "name": "look_up", "arguments": "{}"}
    body = _events(
        ("gateway.opened", {"presence": "participant", "identity": "alice", "position": "a-1"}),
        ("stream.opened", {**opened, "stream_id": "s1"}),
        ("stream.chunk", {**heard, "stream_id": "s1", "index": 0, "text": "how are"}),
        ("stream.closed", {**heard, "stream_id": "s1", "complete": True, "chunks": 1}),
        ("stream.opened", {**opened, "stream_id": "s2"}),
        ("stream.chunk", {**heard, "stream_id": "s2", "index": 0, "text": "How are you?"}),
        ("stream.closed", {**heard, "stream_id": "s2", "complete": True, "chunks": 1}),
        ("participant.connected", {**agent, "kind": "agent", "attributes": None}),
        (
            "agent.tool_execution_updated",
            {**agent, "update": {"type": "tool_call_started", "function_call": call}},
        ),
        # What an agent may leave out.
        ("agent.tool_execution_updated", {**agent, "update": None}),
        ("agent.session_usage_updated", {**agent, "usage": None}),
        ("agent.error", {**agent, "error": None, "source": None}),
        ("gateway.gap", {"reason": "unknown", "from": "a-1", "to": "b-2"}),
        ("gateway.closing", {"reason": "removed", "reconnect": False}),
    )

    async def fulfill(route: Route) -> None:
        await route.fulfill(body=body, headers={"Content-Type": "text/event-stream"})

    await page.route("**/events?*", fulfill)
    await _open(page, gateway, f"{gateway.token('alice', room)}&agent=1")
    await expect(page.locator("#notice")).to_contain_text("You were removed from the room.")
    await expect(page.locator(".text .body")).to_have_text(["How are you?"])
    await expect(page.locator("#agents .note")).to_have_text(["is here"])
    await expect(page.locator("#tools .note")).to_have_text(["not known to have ended"])
    await expect(page.locator("#errors .note")).to_have_text(["not recoverable"])


def test_no_event_of_agents_is_passed_over() -> None:
    script = (PAGE / "page.js").read_text()
    names = {*DECODERS, *helper.ONLY, *helper.FULLER}
    assert [name for name in sorted(names) if f'"agent.{name}"' not in script] == []

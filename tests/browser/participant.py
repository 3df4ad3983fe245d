"""A participant by WebRTC: LiveKit's own client in a page of Chromium."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playwright.async_api import Browser, ConsoleMessage, Page

from tests.running_gateway import DEADLINE

CONNECT_SECONDS = 15.0
"""It takes half a second; the first page of a Chromium that has just begun, on a busy machine, more."""

_JOIN = """
async ({ url, token, topics }) => {
  const room = new LivekitClient.Room();
  window.room = room;
  for (const topic of topics) {
    room.registerTextStreamHandler(topic, async (reader, { identity }) => {
      const { id, attributes = {} } = reader.info;
      try {
        const text = await reader.readAll();
        tell("text", { sender: identity, topic, text, attributes, stream_id: id, error: null });
      } catch (error) {
        tell("text", { sender: identity, topic, text: "", attributes, stream_id: id, error: error.message });
      }
    });
  }
  room.on("disconnected", (reason) => tell("disconnected", LivekitClient.DisconnectReason[reason]));
  await room.connect(url, token);
}
"""

_SEND = """
async ([text, options]) => (await room.localParticipant.sendText(text, options)).id
"""

_PRESENT = "identity => room.remoteParticipants.has(identity)"
_ABSENT = "identity => !room.remoteParticipants.has(identity)"


@dataclass(frozen=True, slots=True)
class BrowserText:
    """A text stream that the browser has read to its end."""

    sender: str
    topic: str
    text: str
    attributes: Mapping[str, str]
    stream_id: str
    error: str | None
    """What the client says of a stream that broke; None of a whole one."""


class BrowserParticipant:
    """It is in its room from the beginning of the block to its end, unless one of them ends it before."""

    def __init__(self, page: Page, identity: str) -> None:
        self.page = page
        self.identity = identity
        self.received: list[BrowserText] = []
        """All texts so far."""
        self._texts: asyncio.Queue[BrowserText] = asyncio.Queue()
        self._ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def send_text(
        self,
        text: str,
        topic: str = "lk.chat",
        *,
        to: Sequence[str] = (),
        attributes: Mapping[str, str] | None = None,
    ) -> str:
        """Send it as one stream; the stream's id."""
        options = {
            "topic": topic,
            "destinationIdentities": list(to),
            "attributes": dict(attributes or {}),
        }
        async with asyncio.timeout(DEADLINE):
            stream_id: str = await self.page.evaluate(_SEND, [text, options])
        return stream_id

    async def next_text(self) -> BrowserText:
        """The next text that arrives, in the order of their ends."""
        async with asyncio.timeout(DEADLINE):
            return await self._texts.get()

    async def participants(self) -> set[str]:
        """The identities of the others."""
        async with asyncio.timeout(DEADLINE):
            return set(await self.page.evaluate("[...room.remoteParticipants.keys()]"))

    async def until_present(self, identity: str) -> None:
        await self.page.wait_for_function(_PRESENT, arg=identity)

    async def until_absent(self, identity: str) -> None:
        await self.page.wait_for_function(_ABSENT, arg=identity)

    async def disconnected(self) -> str:
        """Why it is no longer in the room, once it is not, like `DUPLICATE_IDENTITY`."""
        async with asyncio.timeout(DEADLINE):
            return await asyncio.shield(self._ended)

    async def leave(self) -> None:
        """Leave as a person does who closes the call; allowed when it is not in the room any more."""
        async with asyncio.timeout(DEADLINE):
            await self.page.evaluate("room.disconnect()")

    async def join(self, url: str, token: str, topics: Sequence[str]) -> None:
        await self.page.expose_function("tell", self._told)
        async with asyncio.timeout(CONNECT_SECONDS):
            arguments = {"url": url, "token": token, "topics": list(topics)}
            await self.page.evaluate(_JOIN, arguments)

    def _told(self, event: str, data: Any) -> None:
        if event == "text":
            text = BrowserText(**data)
            self.received.append(text)
            self._texts.put_nowait(text)
        elif not self._ended.done():
            self._ended.set_result(data)


@asynccontextmanager
async def browser_participant(
    browser: Browser,
    script: Path,
    url: str,
    token: str,
    identity: str,
    topics: Sequence[str] = ("lk.chat",),
) -> AsyncIterator[BrowserParticipant]:
    """In the room, in a browser profile of its own; what the client warns of is printed."""
    context = await browser.new_context()
    context.set_default_timeout(DEADLINE * 1000)
    page = await context.new_page()
    page.on("console", _show)
    # Any page of this machine does; the server has one that says OK. From elsewhere, also from
    # about:blank, the client lacks crypto.randomUUID, or Chromium keeps it from this machine's ports.
    await page.goto(url.replace("ws://", "http://", 1))
    await page.add_script_tag(path=script)
    participant = BrowserParticipant(page, identity)
    try:
        await participant.join(url, token, topics)
        yield participant
        await participant.leave()
    finally:
        await context.close()


def _show(message: ConsoleMessage) -> None:
    if message.type in ("warning", "error"):
        print(f"browser: {message.text}")

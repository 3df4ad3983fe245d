"""Pages in Chromium that read events with a bare `EventSource`: what a page without our code does."""

import asyncio
import json
from dataclasses import dataclass
from typing import Any

from playwright.async_api import Page, Request, Response

PATIENCE = 20.0
"""Seconds for what a browser does by itself, which waits two to five between its attempts."""

EVENTS = (
    "gateway.opened",
    "gateway.gap",
    "gateway.closing",
    "stream.opened",
    "stream.chunk",
    "stream.closed",
)

_OPEN = """
([url, names]) => {
  const source = new EventSource(url);
  (window.sources ??= []).push(source);
  for (const name of names) {
    source.addEventListener(name, (event) => {
      hear(name, event.lastEventId, event.data);
    });
  }
  source.onopen = () => hear("open", "", "null");
  source.onerror = () => hear("error", "", JSON.stringify(source.readyState));
}
"""

CONNECTING = 0
"""The `readyState` of a source that comes back by itself."""

CLOSED = 2
"""Of one that has given up."""

REFUSED = "net::ERR_CONNECTION_REFUSED"

COME_BACK = str(len("retry: 2000\n\n"))
"""The `Content-Length` of what a proxy says in a gateway's stead; the gateway's own streams have none."""


@dataclass(frozen=True, slots=True)
class Heard:
    name: str
    """Of the event; `open` and `error` are the source's own."""
    last_event_id: str
    data: Any


class EventSources:
    """The event sources of one page."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.heard: list[Heard] = []
        self._answered: list[Request] = []
        self._turned_away = False
        self._read = 0
        self._changed = asyncio.Event()
        page.on("requestfailed", self._on_failure)
        page.on("response", self._on_response)

    async def goto(self, url: str) -> None:
        """A page of that origin; from about:blank Chromium does not reach this machine's ports."""
        await self.page.expose_function("hear", self._hear)
        await self.page.goto(url)

    async def open(self, path: str) -> None:
        await self.page.evaluate(_OPEN, [path, EVENTS])

    async def close(self, source: int) -> None:
        """They are counted in the order of their opening, from 0."""
        await self.page.evaluate("(source) => sources[source].close()", source)

    async def next(self, name: str) -> Heard:
        """The next event of that name; what comes before it is passed over."""
        async with asyncio.timeout(PATIENCE):
            while True:
                while self._read < len(self.heard):
                    event = self.heard[self._read]
                    self._read += 1
                    if event.name == name:
                        return event
                await self._change()

    async def until_turned_away(self) -> None:
        """It has asked where nobody listens, or has got an answer in a gateway's stead."""
        async with asyncio.timeout(PATIENCE):
            while not self._turned_away:
                await self._change()

    @property
    def names(self) -> list[str]:
        """Of all events that were heard; not what the sources say of themselves."""
        return [event.name for event in self.heard if event.name in EVENTS]

    @property
    def texts(self) -> list[str]:
        """Of all pieces that were heard."""
        return [event.data["text"] for event in self.heard if event.name == "stream.chunk"]

    @property
    def states(self) -> list[int]:
        """The `readyState` at each error."""
        return [event.data for event in self.heard if event.name == "error"]

    async def last_event_ids(self) -> list[str | None]:
        """That each request was made with which got an answer."""
        headers = [await request.all_headers() for request in self._answered]
        return [each.get("last-event-id") for each in headers]

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _hear(self, name: str, last_event_id: str, data: str) -> None:
        self.heard.append(Heard(name, last_event_id, json.loads(data)))
        self._changed.set()

    def _on_failure(self, request: Request) -> None:
        if "/events?" in request.url and request.failure == REFUSED:
            self._turned_away = True
            self._changed.set()

    def _on_response(self, response: Response) -> None:
        if "/events?" in response.url:
            self._answered.append(response.request)
            self._turned_away |= response.headers.get("content-length") == COME_BACK
            self._changed.set()

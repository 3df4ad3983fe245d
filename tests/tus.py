"""A page that uploads texts with tus-js-client over connections that break, and those who hear them."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from playwright.async_api import Browser

from gateway.events import StreamChunk, StreamClosed, StreamOpened
from tests.browser.uploader import Uploaded, Uploader, uploader
from tests.cutting_proxy import Cut, CuttingProxy, cutting_proxy
from tests.guests import Guest, guest
from tests.running_gateway import EventStream, RunningGateway

PATIENCE = 30.0
"""Seconds for what waits for a browser, on a busy machine."""

CHUNK = 7_001
"""Bytes of a request; odd, so that characters straddle requests."""


class Heard(NamedTuple):
    """One stream, as one of those in the room has it."""

    text: str
    complete: bool = False


class Hearing:
    """What one of them has heard, stream by stream, in the order of opening."""

    def __init__(self) -> None:
        self.reasons: list[str | None] = []
        """Of those that have ended."""
        self._streams: dict[str, Heard] = {}
        self._changed = asyncio.Condition()

    @property
    def streams(self) -> list[Heard]:
        return list(self._streams.values())

    @property
    def complete(self) -> list[str]:
        return [text for text, complete in self.streams if complete]

    async def until_text(self) -> None:
        await self._until(lambda: any(text for text, _ in self.streams))

    async def until_complete(self) -> None:
        await self._until(lambda: self.complete)

    async def until_over(self, count: int) -> None:
        """So many streams have ended."""
        await self._until(lambda: len(self.reasons) == count)

    async def read(self, events: EventStream) -> None:
        """Until the gateway closes."""
        while (event := await events.next()).name != "gateway.closing":
            if event.name.startswith("stream."):
                await self._hear(event.data)

    async def listen(self, guest: Guest) -> None:
        while True:
            event = await guest.heard.get()
            if isinstance(event, StreamOpened | StreamChunk | StreamClosed):
                await self._hear({"type": event.type, **dataclasses.asdict(event)})

    async def _until(self, come: Callable[[], object]) -> None:
        async with asyncio.timeout(PATIENCE), self._changed:
            await self._changed.wait_for(come)

    async def _hear(self, event: Mapping[str, Any]) -> None:
        stream_id = event["stream_id"]
        heard = self._streams.get(stream_id, Heard(""))
        match event["type"]:
            case "stream.chunk":
                heard = Heard(heard.text + event["text"])
            case "stream.closed":
                heard = Heard(heard.text, event["complete"])
                self.reasons.append(event["reason"])
            case _:
                pass
        async with self._changed:
            self._streams[stream_id] = heard
            self._changed.notify_all()


@dataclass(frozen=True, slots=True)
class Rig:
    """The page uploads as alice, through the proxy; bob reads events, carol is a participant."""

    gateway: RunningGateway
    room: str
    proxy: CuttingProxy
    page: Uploader
    bob: Hearing
    carol: Hearing

    async def prepare(
        self, text: str, *, headers: Mapping[str, str] | None = None, **options: Any
    ) -> None:
        await self.page.prepare(
            f"{self.proxy.url}/rooms/{self.room}/text",
            text,
            {**self.gateway.bearer("alice", self.room), **(headers or {})},
            **{"chunkSize": CHUNK} | options,
        )

    async def upload(
        self, text: str, cuts: Iterable[Cut] = (), **options: Any
    ) -> tuple[Uploaded, list[Heard]]:
        """What the client says, and what bob and carol have heard in the end."""
        await self.prepare(text, **options)
        self.proxy.cut(cuts)
        return await self.finish()

    async def finish(self) -> tuple[Uploaded, list[Heard]]:
        """The same, of what is prepared."""
        await self.page.start()
        uploaded = await self.page.uploaded()
        print(uploaded)
        if uploaded.error is None:
            await self.bob.until_complete()
        # What is left of creations whose answer was lost ends with the gateway.
        await self.gateway.hub.drain()
        await self.bob.until_over(len(self.bob.streams))
        await self.carol.until_over(len(self.bob.streams))
        assert self.carol.streams == self.bob.streams
        return uploaded, self.bob.streams


@asynccontextmanager
async def tus_rig(
    browser: Browser,
    script: Path,
    room: str,
    gateway: RunningGateway,
    *,
    through: str | None = None,
    page_of: str | None = None,
) -> AsyncIterator[Rig]:
    """`through`: what stands between the proxy and the gateway. `page_of`: the page's origin, where it is
    not the proxy's own."""
    async with (
        guest(gateway, room, "carol") as carol,
        gateway.events(room, "bob") as events,
        cutting_proxy(through or gateway.url) as proxy,
        uploader(browser, script, f"{page_of or proxy.url}/livez") as page,
        asyncio.TaskGroup() as tasks,
    ):
        await events.until("gateway.opened")
        rig = Rig(gateway, room, proxy, page, Hearing(), Hearing())
        hearing = (
            tasks.create_task(rig.bob.read(events)),
            tasks.create_task(rig.carol.listen(carol)),
        )
        yield rig
        for each in hearing:
            each.cancel()

"""A page that uploads texts, with tus-js-client in Chromium."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playwright.async_api import Browser, Page

OPEN_SECONDS = 30.0
"""For the first page of a Chromium that has just begun, on a busy machine."""

UPLOAD_SECONDS = 60.0
"""300 KB in 43 requests and 20 cuts take two or three; a browser on a busy machine, a multiple."""

RETRY_DELAYS = [10] * 50
"""Milliseconds; nobody waits here for a network to come back."""

_PREPARE = """
([text, source, options]) => {
  const file = new File([text], "text.txt", { lastModified: 0 });
  const log = [];
  const told = (error) => [log, error && `${error.message}`];
  window.uploaded = new Promise((resolve) => {
    window.upload = new tus.Upload(source === "stream" ? file.stream().getReader() : file, {
      protocol: "ietf-draft-05",
      ...options,
      onAfterResponse: (request, response) => {
        log.push([request.getMethod(), response.getStatus()]);
      },
      onSuccess: () => resolve(told(null)),
      onError: (error) => resolve(told(error)),
    });
  });
}
"""

_RESUME = """
async () => {
  const [previous] = await upload.findPreviousUploads();
  upload.resumeFromPreviousUpload(previous);
}
"""


@dataclass(frozen=True, slots=True)
class Uploaded:
    """What the client says in the end."""

    answers: list[tuple[str, int]]
    """Method and status of each that it has got, in their order."""
    error: str | None
    """None of a success."""


class Uploader:
    def __init__(self, page: Page, script: Path) -> None:
        self.page = page
        self._script = script

    async def open(self, url: str) -> None:
        """A page of that origin, or the same one anew. From about:blank Chromium does not reach this
        machine's ports."""
        await self.page.goto(url)
        await self.page.add_script_tag(path=self._script)

    async def prepare(
        self,
        endpoint: str,
        text: str,
        headers: Mapping[str, str],
        *,
        source: str = "file",
        **options: Any,
    ) -> None:
        """An upload of `text`, from a `file` or a `stream`; `options` are those of the client."""
        settings = {"endpoint": endpoint, "headers": dict(headers), "retryDelays": RETRY_DELAYS}
        await self.page.evaluate(_PREPARE, [text, source, settings | options])

    async def resume(self) -> None:
        """To be gone on with, not begun: what is prepared was uploaded in part before."""
        await self.page.evaluate(_RESUME)

    async def start(self) -> None:
        await self.page.evaluate("upload.start()")

    async def uploaded(self) -> Uploaded:
        async with asyncio.timeout(UPLOAD_SECONDS):
            answers, error = await self.page.evaluate("uploaded")
        return Uploaded([(method, status) for method, status in answers], error)

    async def abort(self) -> None:
        """Also what the gateway has of it. Raises what the client says if that fails."""
        async with asyncio.timeout(UPLOAD_SECONDS):
            await self.page.evaluate("upload.abort(true)")


@asynccontextmanager
async def uploader(browser: Browser, script: Path, url: str) -> AsyncIterator[Uploader]:
    """In a browser profile of its own, on a page of `url`."""
    context = await browser.new_context()
    context.set_default_timeout(OPEN_SECONDS * 1000)
    uploading = Uploader(await context.new_page(), script)
    try:
        await uploading.open(url)
        yield uploading
    finally:
        await context.close()

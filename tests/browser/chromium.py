"""Chromium without a window, for the page and for participants by WebRTC."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from playwright.async_api import Browser, async_playwright

QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

WEBRTC = [
    # The tests' LiveKit server is reached over the loopback interface alone, network or not.
    "--allow-loopback-in-peer-connection",
]


@asynccontextmanager
async def running_chromium() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=QUIET + WEBRTC
        )
        yield browser
        await browser.close()

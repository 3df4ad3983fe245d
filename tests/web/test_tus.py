"""Texts that tus-js-client uploads, in Chromium, over connections that break."""

import json
import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser

from tests.conftest import Serve
from tests.cutting_proxy import Cut, How, Way, random_cuts
from tests.proxies.programs import running_nginx
from tests.tus import CHUNK, PATIENCE, Heard, Rig, tus_rig

pytestmark = [pytest.mark.needs("chromium"), pytest.mark.needs("npm")]

CUTS = 25
"""Of one upload, in 43 requests and those that come again."""

WAYS: dict[str, Callable[[int], dict[str, Any]]] = {
    "part by part": lambda size: {},
    "from the first request on": lambda size: {"uploadDataDuringCreation": True},
    "of a length told last": lambda size: {"uploadLengthDeferred": True},
    "from a stream": lambda size: {"source": "stream", "uploadLengthDeferred": True},
    "from a stream of known length": lambda size: {"source": "stream", "uploadSize": size},
}
"""The client's options for a text of that size."""


def _text(size: int) -> str:
    """Of so many bytes, in characters of one to four."""
    chance = random.Random(size)  # noqa: S311 - likewise the same every time
    text = "".join(chance.choices("ax \nß€👋", k=size // 2))
    return text + "." * (size - len(text.encode()))


LONG = _text(300_000)
LONG_TO_A_BORDER = _text(43 * CHUNK)
"""Ends where a request does."""

SHORT = _text(3 * CHUNK - 1)


MakeRig = Callable[..., AbstractAsyncContextManager[Rig]]


@pytest.fixture
def rig(browser: Browser, tus_client: Path, room: str, monkeypatch: pytest.MonkeyPatch) -> MakeRig:
    """`async with rig(gateway) as rig`."""
    for module in ("running_gateway", "guests", "cutting_proxy"):
        monkeypatch.setattr(f"tests.{module}.DEADLINE", PATIENCE)
    return partial(tus_rig, browser, tus_client, room)


@pytest.mark.parametrize("seed", range(10))
async def test_a_text_arrives_whole_and_once_over_connections_that_break(
    serve_memory: Serve, rig: MakeRig, seed: int
) -> None:
    await _test_seed(serve_memory, rig, seed)


@pytest.mark.parametrize("seed", [10, 11, 13])
async def test_a_text_arrives_likewise_over_livekit(
    serve_livekit: Serve, rig: MakeRig, seed: int
) -> None:
    await _test_seed(serve_livekit, rig, seed)


async def _test_seed(serve: Serve, rig: MakeRig, seed: int) -> None:
    way = list(WAYS)[seed % len(WAYS)]
    print(f"Seed {seed}: {way}")
    text = LONG if seed % 2 else LONG_TO_A_BORDER
    async with serve() as gateway, rig(gateway) as uploading:
        uploaded, heard = await uploading.upload(
            text, random_cuts(seed, CUTS), **WAYS[way](len(text.encode()))
        )

    assert uploaded.error is None
    # Of creations whose answer was lost there may be others; none of them is complete.
    assert [each.text for each in heard if each.complete] == [text]


@pytest.mark.parametrize("how", [How.RESET, How.CLOSE])
@pytest.mark.parametrize("way", WAYS)
async def test_a_last_answer_that_is_lost_is_got_again(
    serve_memory: Serve, rig: MakeRig, way: str, how: How
) -> None:
    """Chromium itself makes a request again whose answer was lost on a connection that it had used before."""
    size = len(SHORT.encode())
    last = size if way == "from a stream" else 2 * CHUNK
    cut = Cut(Way.ANSWERS, 0, how, once=f"Upload-Offset: {last}\r\n".encode())
    async with serve_memory() as gateway, rig(gateway) as uploading:
        uploaded, heard = await uploading.upload(SHORT, [cut], **WAYS[way](size))

    assert uploaded.error is None
    assert heard == [Heard(SHORT, True)]


@pytest.mark.parametrize("way", WAYS)
async def test_an_empty_text_arrives(serve_memory: Serve, rig: MakeRig, way: str) -> None:
    async with serve_memory() as gateway, rig(gateway) as uploading:
        uploaded, heard = await uploading.upload("", **WAYS[way](0))

    assert uploaded.error is None
    assert heard == [Heard("", True)]


LOST_CREATION = Cut(Way.ANSWERS, 0, How.RESET, once=b"POST ")


@pytest.mark.parametrize("text", [SHORT, ""])
@pytest.mark.parametrize("way", ["part by part", "from the first request on"])
async def test_a_creation_with_a_key_that_comes_twice_is_one(
    serve_memory: Serve, rig: MakeRig, way: str, text: str
) -> None:
    async with serve_memory() as gateway, rig(gateway) as uploading:
        uploaded, heard = await uploading.upload(
            text, [LOST_CREATION], headers={"Idempotency-Key": "key"}, **WAYS[way](0)
        )

    assert uploaded.error is None
    assert heard == [Heard(text, True)]


async def test_a_creation_without_a_key_that_comes_twice_leaves_an_incomplete_text(
    serve_memory: Serve, rig: MakeRig
) -> None:
    async with serve_memory() as gateway, rig(gateway) as uploading:
        uploaded, heard = await uploading.upload(SHORT, [LOST_CREATION])

    assert uploaded.error is None
    assert heard == [Heard("", False), Heard(SHORT, True)]


@pytest.mark.parametrize("way", ["part by part", "from the first request on"])
async def test_lines_are_told_by_the_client_s_own_headers(
    serve_memory: Serve, rig: MakeRig, way: str
) -> None:
    lines = "".join(f"{json.dumps(piece)}\n" for piece in SHORT.split(" "))
    async with serve_memory() as gateway, rig(gateway) as uploading:
        uploaded, heard = await uploading.upload(
            lines, headers={"Content-Type": "application/x-ndjson"}, **WAYS[way](0)
        )

    assert uploaded.error is None
    assert heard == [Heard(SHORT.replace(" ", ""), True)]


async def test_a_text_that_could_not_be_sent_is_no_success(
    serve_memory: Serve, rig: MakeRig
) -> None:
    async with serve_memory() as gateway, rig(gateway) as uploading:
        uploaded, heard = await uploading.upload(
            json.dumps({"text": SHORT, "agent_timeout": 0.01}),
            headers={"Content-Type": "application/json"},
            retryDelays=[10, 10],
        )

    assert uploaded.error is not None
    assert "agent_unavailable" in uploaded.error
    assert uploaded.answers[-5:] == [
        ("PATCH", 504),
        ("HEAD", 204),
        ("PATCH", 504),
        ("HEAD", 204),
        ("PATCH", 504),
    ]
    assert heard == []


async def test_a_page_of_another_origin_uploads(serve_memory: Serve, rig: MakeRig) -> None:
    async with (
        serve_memory(cors_origins=("*",)) as gateway,
        rig(gateway, page_of=gateway.url) as uploading,
    ):
        uploaded, heard = await uploading.upload(
            LONG,
            random_cuts(20, 10),
            headers={"Idempotency-Key": "key"},
            metadata={"filename": "text.txt"},
            addRequestId=True,
            **WAYS["of a length told last"](0),
        )

    assert uploaded.error is None
    assert heard == [Heard(LONG, True)]


STALLED = Cut(Way.REQUESTS, 100_000, How.STALL)


async def test_an_upload_that_is_aborted_is_cancelled(serve: Serve, rig: MakeRig) -> None:
    async with serve() as gateway, rig(gateway) as uploading:
        await uploading.prepare(LONG, chunkSize=300_000)
        uploading.proxy.cut([STALLED, Cut(Way.ANSWERS, 0, How.RESET, once=b"DELETE ")])
        await uploading.page.start()
        for hearing in (uploading.bob, uploading.carol):
            await hearing.until_text()
        await uploading.page.abort()
        for hearing in (uploading.bob, uploading.carol):
            await hearing.until_over(1)
            assert hearing.complete == []
            assert hearing.reasons == ["cancelled"]


async def test_an_upload_goes_on_after_a_reload_of_its_page(
    serve_memory: Serve, rig: MakeRig
) -> None:
    async with serve_memory() as gateway, rig(gateway) as uploading:
        await uploading.prepare(LONG, chunkSize=300_000)
        uploading.proxy.cut([STALLED])
        await uploading.page.start()
        await uploading.bob.until_text()
        await uploading.page.open(f"{uploading.proxy.url}/livez")
        await uploading.prepare(LONG)
        await uploading.page.resume()
        uploaded, heard = await uploading.finish()

    assert uploaded.error is None
    assert uploaded.answers[0] == ("HEAD", 204)
    assert heard == [Heard(LONG, True)]


@pytest.mark.needs("nginx")
@pytest.mark.parametrize("buffering", [[], [("proxy_request_buffering off;", "")]])
async def test_a_text_arrives_through_nginx(
    serve_memory: Serve, rig: MakeRig, tmp_path: Path, buffering: list[tuple[str, str]]
) -> None:
    async with (
        serve_memory() as gateway,
        running_nginx(gateway.url, tmp_path, None, *buffering) as nginx,
        rig(gateway, through=nginx) as uploading,
    ):
        uploaded, heard = await uploading.upload(
            LONG, random_cuts(30, CUTS), **WAYS["from the first request on"](0)
        )

    assert uploaded.error is None
    assert [each.text for each in heard if each.complete] == [LONG]

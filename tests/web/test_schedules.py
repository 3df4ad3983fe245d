"""Texts sent over a bad network."""

import asyncio

from gateway.web.body import PARTIAL
from tests.bad_network import PLAIN, Asked, Delivery, Direct, unseen
from tests.conftest import Serve
from tests.overheard import listening
from tests.running_gateway import DEADLINE

STANDING = Delivery(cut=0.999, stands=True)


async def test_a_repeated_last_part_that_stands_still_keeps_nobody_waiting(
    serve_memory: Serve,
) -> None:
    async with serve_memory() as gateway, listening(gateway) as place:
        network = Direct(gateway)
        headers = (*place.headers, ("Content-Type", "text/plain"), ("Upload-Complete", "?1"))
        created = await network.ask(
            Asked("POST", place.path, headers, b"all", query="attr.tag=all"),
            PLAIN, asyncio.Event(), unseen,
        )  # fmt: skip
        assert created is not None
        path = created.headers["location"]
        headers = (*place.headers, ("Content-Type", PARTIAL), ("Upload-Offset", "3"))
        again = Asked("PATCH", path, headers, b"", chunked=True)
        standing = asyncio.create_task(network.ask(again, STANDING, asyncio.Event(), unseen))
        async with asyncio.timeout(DEADLINE):
            while not standing.done():
                head = Asked("HEAD", path, place.headers)
                told = await network.ask(head, PLAIN, asyncio.Event(), unseen)
                assert told is not None
                assert (told.status, told.complete) == (204, True)

        interrupted = standing.result()
        assert interrupted is not None
        assert (interrupted.status, interrupted.code) == (409, "upload_interrupted")


async def test_an_upload_of_another_length_is_another_request(serve_memory: Serve) -> None:
    async with serve_memory() as gateway, listening(gateway) as place:
        statuses = []
        for length in ("3", "3", "4"):
            headers = dict(place.headers) | {
                "Content-Type": "text/plain",
                "Idempotency-Key": "k",
                "Upload-Complete": "?0",
                "Upload-Length": length,
            }
            answer = await gateway.client.post(f"{place.path}?attr.tag=k", headers=headers)
            statuses.append(answer.status_code)

    assert statuses == [201, 201, 422]

"""Texts sent over a bad network: nothing is lost, nothing doubled, and no half text is marked complete.

`tests/schedules.py` draws what a client does, `tests/schedule_client.py` does so, and holds what it was told
against what others heard. A failure tells the schedule's number, what was asked and what was answered;
`ALONE` plays it by itself.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack

import pytest

from gateway.web.body import JSON, PARTIAL
from gateway.web.reading import SHARES
from gateway.web.writing import WHOLE_TEXTS_HELD
from tests.bad_network import PLAIN, Asked, Delivery, Direct, Network, Sockets, unseen
from tests.conftest import Serve
from tests.overheard import listening
from tests.running_gateway import DEADLINE, RunningGateway
from tests.schedule_client import Client
from tests.schedules import Schedule, drawn

SCHEDULES = 10_000
BLOCK = 500
"""Of one test: what is slow or hangs is found within it."""

BLOCK_DEADLINE = 90.0
"""Seconds for a block; three are usual."""

OVER_LIVEKIT = 200

ALONE = (9, 6149)
"""Schedules that are played each by itself, for they found something: a last part that came again and stood
still, an upload of another length with the same key. Write another one's number here to play it again, and
select it by `-k alone`."""

IN_ROOM = 50
"""Schedules of one room: a text must not get into another's way."""

AT_ONCE = 40

PATIENCE = 300.0
IMPATIENCE = 1.0
"""Seconds until an upload is given up that nobody goes on with."""

LINGER = 600.0
"""The sender's own log is read when all is over: it is to be there until then."""

SHOWN = 3
"""Schedules that a failure shows; one defect fails many."""

MOST_OPEN = 200
MOST_BYTES = 65_536
"""More than any schedule needs."""

STANDING = Delivery(cut=0.999, stands=True)


@pytest.mark.parametrize("first", range(0, SCHEDULES, BLOCK))
async def test_over_the_twin_each_text_is_there_as_its_client_was_told(
    serve_memory: Serve, caplog: pytest.LogCaptureFixture, first: int
) -> None:
    await _play(serve_memory, Direct, range(first, first + BLOCK))

    assert not _errors(caplog)


@pytest.mark.parametrize("number", ALONE)
async def test_alone(serve_memory: Serve, number: int) -> None:
    await _play(serve_memory, Direct, (number,))


async def test_over_livekit_each_text_is_there_as_its_client_was_told(
    serve_livekit: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    await _play(serve_livekit, Sockets, range(OVER_LIVEKIT))

    assert not _errors(caplog)


async def test_schedules_leave_nothing_held(serve_memory: Serve) -> None:
    schedules = [each for each in map(drawn, range(IN_ROOM)) if not each.is_given_up]
    bounds = {
        "max_open_streams": MOST_OPEN,
        "max_open_streams_of_identity": MOST_OPEN,
        "max_text_bytes": MOST_BYTES,
    }
    async with serve_memory(linger=LINGER, **bounds) as gateway, listening(gateway) as place:
        network = Direct(gateway)
        assert not await _play_over(network, schedules)

        # Each stands still, and holds as much as it may; one more is one too many.
        for media_type, held, most, code in (
            ("text/plain", b"x", MOST_OPEN, "too_many_open_streams"),
            (JSON, b"x" * MOST_BYTES, WHOLE_TEXTS_HELD // SHARES, "too_many_bodies"),
        ):
            headers = (*place.headers, ("Content-Type", media_type))
            asked = Asked("POST", place.path, headers, held, chunked=True)
            released = asyncio.Event()
            standing = [
                asyncio.create_task(network.ask(asked, STANDING, released, unseen))
                for _ in range(most + 1)
            ]
            await asyncio.wait(standing, timeout=DEADLINE, return_when=asyncio.FIRST_COMPLETED)
            released.set()
            refused = [told for told in await asyncio.gather(*standing) if told is not None]
            assert [(told.status, told.code) for told in refused] == [(429, code)]
            await network.over()


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


def test_a_number_always_draws_the_same() -> None:
    assert [drawn(number) for number in range(50)] == [drawn(number) for number in range(50)]


async def _play(
    serve: Serve, network: Callable[[RunningGateway], Network], numbers: Sequence[int]
) -> None:
    schedules = [drawn(number) for number in numbers]
    given_up = [each for each in schedules if each.is_given_up]
    seen_through = [each for each in schedules if not each.is_given_up]
    async with asyncio.timeout(BLOCK_DEADLINE), asyncio.TaskGroup() as playing:
        failed = [
            playing.create_task(_play_with(serve, network, seen_through, PATIENCE)),
            playing.create_task(_play_with(serve, network, given_up, IMPATIENCE)),
        ]
    accounts = [account for each in failed for account in each.result()]
    if accounts:
        pytest.fail(
            f"{len(accounts)} of {len(schedules)} schedules failed:\n\n"
            + "\n\n".join(accounts[:SHOWN]),
            pytrace=False,
        )


async def _play_with(
    serve: Serve,
    network: Callable[[RunningGateway], Network],
    schedules: Sequence[Schedule],
    idle: float,
) -> list[str]:
    async with serve(upload_idle_timeout=idle, linger=LINGER) as gateway:
        return await _play_over(network(gateway), schedules)


async def _play_over(network: Network, schedules: Sequence[Schedule]) -> list[str]:
    """The accounts of those that failed."""
    turns = asyncio.Semaphore(AT_ONCE)

    async def play(client: Client) -> None:
        async with turns:
            await client.play()

    async with AsyncExitStack() as holding:
        places = [
            await holding.enter_async_context(listening(network.gateway))
            for _ in range(0, len(schedules), IN_ROOM)
        ]
        clients = [
            Client(schedule, network, places[number // IN_ROOM])
            for number, schedule in enumerate(schedules)
        ]
        async with asyncio.TaskGroup() as playing:
            for client in clients:
                playing.create_task(play(client))
        await network.over()
        async with asyncio.TaskGroup() as settling:
            for place in places:
                settling.create_task(place.settle())
        failed = [client.account() for client in clients if client.verdict()]
        for place in places:
            failed += await place.compare()
    return failed


def _errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.ERROR]

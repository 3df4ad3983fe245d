"""The turns of closings, out of all orders in which ends and trailers may be heard of."""

import asyncio

import pytest

from gateway.rooms import closings as closings_module
from gateway.rooms.closings import Closings, Place
from tests.running_gateway import DEADLINE


class Stage:
    """What is heard of the streams of some senders, and whose closings were told."""

    def __init__(self) -> None:
        self.closings = Closings()
        self.told: asyncio.Queue[str] = asyncio.Queue()

    @property
    def told_so_far(self) -> list[str]:
        return [self.told.get_nowait() for _ in range(self.told.qsize())]

    async def next(self) -> str:
        async with asyncio.timeout(DEADLINE):
            return await self.told.get()

    def open(self, stream_id: str, sender: str = "carol", *, whole: bool = False) -> Place:
        return self.closings.opened(sender, stream_id, whole=whole)

    def piece(self, place: Place) -> None:
        self.closings.chunk(place.stream_id)

    def trailer(self, place: Place) -> None:
        self.closings.trailer(place.stream_id)

    def end(self, place: Place, *, at_once: bool = False) -> None:
        self.closings.ended(place, lambda: self.told.put_nowait(place.stream_id), at_once=at_once)


@pytest.fixture
async def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.setattr(closings_module, "TURN_TIMEOUT", 60.0)  # nobody waits so long
    return Stage()


async def test_ends_are_told_in_the_order_of_their_trailers(stage: Stage) -> None:
    a, b, c = [stage.open(name) for name in "abc"]
    for place in (c, a, b):
        stage.trailer(place)
    for place in (a, b):
        stage.end(place)
    assert stage.told_so_far == []
    stage.end(c)

    assert stage.told_so_far == ["c", "a", "b"]


async def test_an_end_waits_for_its_trailer(stage: Stage) -> None:
    a, b = [stage.open(name) for name in "ab"]
    stage.end(a)
    stage.end(b)
    assert stage.told_so_far == []
    stage.trailer(b)
    assert stage.told_so_far == ["b"]
    stage.trailer(a)

    assert stage.told_so_far == ["a"]


async def test_who_is_still_open_and_other_senders_are_not_waited_for(stage: Stage) -> None:
    stage.open("open")
    stage.trailer(stage.open("of another", "dave"))
    a = stage.open("a")
    stage.trailer(a)
    stage.end(a)

    assert stage.told_so_far == ["a"]


async def test_a_text_in_one_packet_has_the_turn_of_its_opening(stage: Stage) -> None:
    earlier, later = stage.open("earlier"), stage.open("later")
    stage.trailer(earlier)
    text = stage.open("text", whole=True)
    stage.trailer(later)
    stage.end(later)
    stage.end(text)
    assert stage.told_so_far == []
    stage.end(earlier)

    assert stage.told_so_far == ["earlier", "text", "later"]


async def test_a_text_in_pieces_has_the_turn_of_its_trailer_and_holds_up_nobody(
    stage: Stage,
) -> None:
    text, other = stage.open("text", whole=True), stage.open("other")
    stage.trailer(other)
    stage.end(other)
    assert stage.told_so_far == []
    stage.piece(text)
    assert await stage.next() == "other"
    stage.end(text)
    assert stage.told_so_far == []
    stage.trailer(text)

    assert stage.told_so_far == ["text"]


async def test_what_ends_without_a_trailer_is_told_at_once_and_holds_up_nobody(
    stage: Stage,
) -> None:
    broken, broken_text = stage.open("broken"), stage.open("broken text", whole=True)
    other, waiting = stage.open("other"), stage.open("waiting")
    stage.end(waiting)
    stage.trailer(other)
    stage.end(other)
    stage.end(broken, at_once=True)
    assert stage.told_so_far == ["broken"]
    stage.end(broken_text, at_once=True)

    assert stage.told_so_far == ["broken text", "other"]


async def test_an_id_that_is_used_again_has_a_turn_of_its_own(stage: Stage) -> None:
    first = stage.open("same")
    stage.trailer(first)
    second = stage.open("same")
    other = stage.open("other")
    stage.trailer(other)
    stage.trailer(second)
    for place in (second, other, first):
        stage.end(place)

    assert stage.told_so_far == ["same", "other", "same"]


async def test_a_trailer_that_does_not_come_is_waited_for_no_longer_than_its_time(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(closings_module, "TURN_TIMEOUT", 0.01)
    for name in "ab":
        stage.end(stage.open(name))

    assert [await stage.next(), await stage.next()] == ["a", "b"]


async def test_who_is_waited_for_too_long_is_overtaken(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(closings_module, "TURN_TIMEOUT", 0.01)
    silent, late = stage.open("silent", whole=True), stage.open("late")
    a, b = [stage.open(name) for name in "ab"]
    for place in (late, a, b):
        stage.trailer(place)
    for place in (b, a):
        stage.end(place)
    assert [await stage.next(), await stage.next()] == ["a", "b"]
    monkeypatch.setattr(closings_module, "TURN_TIMEOUT", 60.0)
    stage.end(late)
    stage.trailer(silent)
    stage.end(silent)

    assert stage.told_so_far == ["late", "silent"]


async def test_a_listener_that_fails_holds_up_nobody(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise ValueError("on purpose")

    monkeypatch.setattr(closings_module, "TURN_TIMEOUT", 0.01)
    failed: asyncio.Queue[object] = asyncio.Queue()
    asyncio.get_running_loop().set_exception_handler(
        lambda loop, context: failed.put_nowait(context["exception"])
    )
    stage.closings.ended(stage.open("fails"), fail)
    stage.end(stage.open("a"))

    assert await stage.next() == "a"
    assert isinstance(failed.get_nowait(), ValueError)


async def test_at_the_end_all_that_wait_are_told_and_nothing_is_left(stage: Stage) -> None:
    waiting, told = stage.open("waiting"), stage.open("told", whole=True)
    stage.end(waiting)
    stage.end(told)
    stage.closings.flush()

    assert stage.told_so_far == ["told", "waiting"]
    assert not stage.closings._places
    assert not stage.closings._turns
    assert not stage.closings._waiting

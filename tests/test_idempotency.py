"""The keys of requests that may come twice: what is done, refused, answered again, and forgotten."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

from gateway.errors import IdempotencyKeyInUse, IdempotencyKeyReused, TooManyIdempotencyKeys
from gateway.idempotency import REMEMBERED, Attempt, IdempotencyKeys, Owner

CAROL = Owner("kitchen", "carol")
DAVE = Owner("kitchen", "dave")
ELSEWHERE = Owner("cellar", "carol")

OPTIONS = b"options"


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def keys(clock: Clock) -> IdempotencyKeys[str]:
    return IdempotencyKeys(now=clock)


def _succeed(
    keys: IdempotencyKeys[str], key: str, answer: str = "done", owner: Owner = CAROL
) -> None:
    with keys.attempt(owner, key, OPTIONS) as attempt:
        assert not attempt.is_repeated
        attempt.see(b"text")
        attempt.succeed(answer)


def _fail(keys: IdempotencyKeys[str], key: str) -> None:
    with suppress(ConnectionError), keys.attempt(CAROL, key, OPTIONS) as attempt:
        attempt.see(b"te")
        raise ConnectionError


@contextmanager
def _repeated(keys: IdempotencyKeys[str], key: str) -> Iterator[Attempt[str]]:
    with keys.attempt(CAROL, key, OPTIONS) as attempt:
        assert attempt.is_repeated
        yield attempt


def test_a_repeated_request_gets_the_first_answer(keys: IdempotencyKeys[str]) -> None:
    _succeed(keys, "k", "first")

    for _ in range(2):
        with _repeated(keys, "k") as attempt:
            for piece in (b"", b"t", b"ext"):
                attempt.see(piece)
            assert attempt.first_answer() == "first"


def test_an_empty_body_is_a_body(keys: IdempotencyKeys[str]) -> None:
    with keys.attempt(CAROL, "k", OPTIONS) as attempt:
        attempt.succeed("nothing said")

    with _repeated(keys, "k") as attempt:
        assert attempt.first_answer() == "nothing said"
        with pytest.raises(IdempotencyKeyReused):
            attempt.see(b"t")


@pytest.mark.parametrize("body", [b"", b"tex", b"Text"])
def test_another_body_is_refused_once_it_is_whole(keys: IdempotencyKeys[str], body: bytes) -> None:
    _succeed(keys, "k")

    with _repeated(keys, "k") as attempt:
        attempt.see(body)
        with pytest.raises(IdempotencyKeyReused):
            attempt.first_answer()


def test_a_longer_body_is_refused_before_its_end(keys: IdempotencyKeys[str]) -> None:
    _succeed(keys, "k")

    with _repeated(keys, "k") as attempt:
        attempt.see(b"text")
        with pytest.raises(IdempotencyKeyReused):
            attempt.see(b"s")


def test_the_first_answer_survives_a_refused_repetition(keys: IdempotencyKeys[str]) -> None:
    _succeed(keys, "k", "first")
    with pytest.raises(IdempotencyKeyReused), _repeated(keys, "k") as attempt:
        attempt.see(b"texts")

    with _repeated(keys, "k") as attempt:
        attempt.see(b"text")
        assert attempt.first_answer() == "first"


def test_other_options_are_refused_while_it_runs_and_after(keys: IdempotencyKeys[str]) -> None:
    with keys.attempt(CAROL, "k", OPTIONS) as attempt:
        with pytest.raises(IdempotencyKeyReused), keys.attempt(CAROL, "k", b"others"):
            pass
        attempt.succeed("done")

    with pytest.raises(IdempotencyKeyReused), keys.attempt(CAROL, "k", b"others"):
        pass


def test_a_second_request_is_refused_while_the_first_runs(keys: IdempotencyKeys[str]) -> None:
    with keys.attempt(CAROL, "k", OPTIONS) as attempt:
        for _ in range(2):
            with pytest.raises(IdempotencyKeyInUse), keys.attempt(CAROL, "k", OPTIONS):
                pass
        attempt.succeed("done")


def test_a_failed_request_is_forgotten_and_may_be_another_one(keys: IdempotencyKeys[str]) -> None:
    _fail(keys, "k")

    with keys.attempt(CAROL, "k", b"others") as attempt:
        assert not attempt.is_repeated
        attempt.see(b"quite another text")
        attempt.succeed("done")


def test_what_a_failed_request_had_of_its_body_is_forgotten(keys: IdempotencyKeys[str]) -> None:
    _fail(keys, "k")
    _succeed(keys, "k", "second")

    with _repeated(keys, "k") as attempt:
        attempt.see(b"text")
        assert attempt.first_answer() == "second"


def test_keys_of_others_are_others(keys: IdempotencyKeys[str]) -> None:
    owners = (CAROL, DAVE, ELSEWHERE)
    with ExitStack() as running:
        for owner in owners:
            attempt = running.enter_context(keys.attempt(owner, "k", OPTIONS))
            assert not attempt.is_repeated
            attempt.succeed(str(owner))

    for owner in owners:
        with keys.attempt(owner, "k", OPTIONS) as attempt:
            assert attempt.first_answer() == str(owner)


def test_a_success_is_remembered_for_its_time_and_no_longer(
    keys: IdempotencyKeys[str], clock: Clock
) -> None:
    _succeed(keys, "k", "first")

    clock.now += REMEMBERED - 0.001
    with _repeated(keys, "k"):
        pass  # which does not make it younger
    clock.now += 0.001
    _succeed(keys, "k", "second")


def test_the_time_begins_with_the_success(keys: IdempotencyKeys[str], clock: Clock) -> None:
    with keys.attempt(CAROL, "k", OPTIONS) as attempt:
        clock.now += 10 * REMEMBERED
        with pytest.raises(IdempotencyKeyInUse), keys.attempt(CAROL, "k", OPTIONS):
            pass
        attempt.succeed("late")

    clock.now += REMEMBERED - 0.001
    with _repeated(keys, "k"):
        pass


def test_each_is_forgotten_in_its_own_time(keys: IdempotencyKeys[str], clock: Clock) -> None:
    _succeed(keys, "old")
    clock.now += REMEMBERED / 2
    _succeed(keys, "young")
    clock.now += REMEMBERED / 2

    _succeed(keys, "old")
    with _repeated(keys, "young"):
        pass


def test_one_identity_has_so_many_keys_in_whatever_rooms(
    clock: Clock,
) -> None:
    keys: IdempotencyKeys[str] = IdempotencyKeys(most_of_identity=2, now=clock)
    _succeed(keys, "a")
    with keys.attempt(CAROL, "b", OPTIONS):  # one that runs counts as well
        for owner in (CAROL, ELSEWHERE):
            with pytest.raises(TooManyIdempotencyKeys), keys.attempt(owner, "c", OPTIONS):
                pass
        _succeed(keys, "a", owner=DAVE)
        with _repeated(keys, "a"):
            pass  # which takes no place

    _succeed(keys, "c")
    with pytest.raises(TooManyIdempotencyKeys), keys.attempt(CAROL, "d", OPTIONS):
        pass
    clock.now += REMEMBERED
    _succeed(keys, "d")
    _succeed(keys, "e")


def test_all_identities_together_have_so_many(
    clock: Clock,
) -> None:
    keys: IdempotencyKeys[str] = IdempotencyKeys(2, now=clock)
    _succeed(keys, "a")
    _succeed(keys, "a", owner=DAVE)
    with pytest.raises(TooManyIdempotencyKeys), keys.attempt(DAVE, "b", OPTIONS):
        pass
    with _repeated(keys, "a"):
        pass

    clock.now += REMEMBERED
    _succeed(keys, "b", owner=DAVE)


def test_failed_and_refused_ones_take_no_place(
    clock: Clock,
) -> None:
    keys: IdempotencyKeys[str] = IdempotencyKeys(most_of_identity=1, now=clock)
    for number in range(5):
        _fail(keys, str(number))
    _succeed(keys, "k")
    for _ in range(5):
        with pytest.raises(IdempotencyKeyReused), keys.attempt(CAROL, "k", b"others"):
            pass
        with pytest.raises(TooManyIdempotencyKeys), keys.attempt(CAROL, "another", OPTIONS):
            pass

    with _repeated(keys, "k") as attempt:
        attempt.see(b"text")
        assert attempt.first_answer() == "done"

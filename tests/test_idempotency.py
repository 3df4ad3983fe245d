"""Keys of requests that come twice: how long a success is remembered, and how many are."""

import pytest

from gateway import idempotency
from gateway.errors import IdempotencyKeyReused, TooManyIdempotencyKeys
from gateway.idempotency import REMEMBERED, IdempotencyKeys, Owner

CAROL = Owner("room", "carol")
DAVE = Owner("room", "dave")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def _succeed(keys: IdempotencyKeys[str], owner: Owner, key: str) -> bool:
    """One request with the key; whether it was the first."""
    with keys.attempt(owner, key, b"options") as attempt:
        attempt.see(b"body")
        if attempt.is_repeated:
            assert attempt.first_answer() == "answer"
            return False
        attempt.succeed("answer")
        return True


def test_a_success_is_remembered_for_its_time_and_no_longer() -> None:
    clock = Clock()
    keys: IdempotencyKeys[str] = IdempotencyKeys(now=clock)
    assert _succeed(keys, CAROL, "k")
    clock.now = REMEMBERED - 0.1
    assert not _succeed(keys, CAROL, "k")
    clock.now = REMEMBERED
    assert _succeed(keys, CAROL, "k")


def test_one_sender_has_a_bounded_number_of_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idempotency, "MAX_KEYS_OF_IDENTITY", 2)
    clock = Clock()
    keys: IdempotencyKeys[str] = IdempotencyKeys(now=clock)
    for key in ("a", "b"):
        _succeed(keys, CAROL, key)
    with pytest.raises(TooManyIdempotencyKeys):
        _succeed(keys, CAROL, "c")
    assert not _succeed(keys, CAROL, "a")  # one that is known needs no room
    assert _succeed(keys, DAVE, "c")
    clock.now = REMEMBERED
    assert _succeed(keys, CAROL, "c")


def test_all_senders_together_have_a_bounded_number_of_keys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(idempotency, "MAX_KEYS", 2)
    clock = Clock()
    keys: IdempotencyKeys[str] = IdempotencyKeys(now=clock)
    for owner in (CAROL, DAVE):
        _succeed(keys, owner, "a")
    with pytest.raises(TooManyIdempotencyKeys):
        _succeed(keys, Owner("room", "erin"), "a")
    clock.now = REMEMBERED
    assert _succeed(keys, Owner("room", "erin"), "a")


def test_a_failure_takes_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idempotency, "MAX_KEYS", 1)
    keys: IdempotencyKeys[str] = IdempotencyKeys()
    for key in ("a", "b"):
        with pytest.raises(ZeroDivisionError), keys.attempt(CAROL, key, b""):
            raise ZeroDivisionError
    assert _succeed(keys, CAROL, "c")


def test_a_longer_body_is_refused_before_its_end() -> None:
    keys: IdempotencyKeys[str] = IdempotencyKeys()
    _succeed(keys, CAROL, "k")
    with keys.attempt(CAROL, "k", b"options") as again:
        again.see(b"body")
        with pytest.raises(IdempotencyKeyReused):
            again.see(b"!")

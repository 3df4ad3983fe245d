"""Who is let in, and what everybody else is told."""

import time
from typing import Any

import jwt
import pytest

from gateway import auth
from gateway.auth import TokenVerifier
from gateway.errors import GatewayError
from tests.conftest import Serve

SECRET = "a secret of at least thirty-two bytes"
NOW = 1_800_000_000


def _claims(**changes: Any) -> dict[str, Any]:
    claims: dict[str, Any] = {
        "iss": "key",
        "sub": "bob",
        "nbf": NOW,
        "exp": NOW + 60,
        "video": {"roomJoin": True, "room": "demo"},
    }
    video = changes.pop("video", {})
    claims |= changes
    if isinstance(video, dict):
        claims["video"] = claims["video"] | video
    else:
        claims["video"] = video
    return {name: value for name, value in claims.items() if value is not ...}


def _sign(claims: dict[str, Any], secret: str = SECRET, algorithm: str = "HS256") -> str:
    # nbf is checked against the machine's clock: it is set far from where the tests' clock stands.
    return jwt.encode({"nbf": 0, **claims} | {"nbf": 0}, secret, algorithm=algorithm)


@pytest.fixture
def verifier() -> TokenVerifier:
    return TokenVerifier({"key": SECRET}, now=lambda: NOW)


def test_a_token_as_livekit_mints_it(verifier: TokenVerifier) -> None:
    caller = verifier.verify(_sign(_claims()))

    assert (caller.identity, caller.room) == ("bob", "demo")
    assert caller.can_publish_data
    assert caller.can_subscribe
    assert not caller.hidden
    assert caller.expires_at == NOW + 60 + auth.LEEWAY
    assert caller.token not in repr(caller)


@pytest.mark.parametrize(
    ("grants", "expected"),
    [
        ({}, True),
        ({"canPublish": False}, False),
        ({"canPublish": False, "canPublishData": True}, True),
        ({"canPublishData": False}, False),
        ({"canPublishData": None, "canPublish": False}, False),
    ],
)
def test_can_publish_data_defaults_to_can_publish_which_defaults_to_true(
    verifier: TokenVerifier, grants: dict[str, Any], expected: bool
) -> None:
    assert verifier.verify(_sign(_claims(video=grants))).can_publish_data is expected


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "expired beyond the leeway": ({"exp": NOW - auth.LEEWAY}, "token_expired"),
    "no exp": ({"exp": ...}, "token_invalid"),
    "exp a string": ({"exp": str(NOW + 60)}, "token_invalid"),
    "exp a boolean": ({"exp": True}, "token_invalid"),
    "exp beyond counting": ({"exp": 10**400}, "token_invalid"),
    "exp before time": ({"exp": -1}, "token_invalid"),
    "exp never": ({"exp": float("inf")}, "token_invalid"),
    "exp not a number": ({"exp": float("nan")}, "token_invalid"),
    "no sub": ({"sub": ...}, "token_invalid"),
    "sub empty": ({"sub": ""}, "token_invalid"),
    "sub a number": ({"sub": 7}, "token_invalid"),
    "sub too long": ({"sub": "ü" * 129}, "token_invalid"),
    "sub with NUL": ({"sub": "a\0b"}, "token_invalid"),
    "sub a lone surrogate": ({"sub": "\ud800"}, "token_invalid"),
    "another key": ({"iss": "other"}, "token_invalid"),
    "no key": ({"iss": ...}, "token_invalid"),
    "no grants": ({"video": None}, "missing_grant"),
    "grants a list": ({"video": ["roomJoin"]}, "missing_grant"),
    "no roomJoin": ({"video": {"roomJoin": None}}, "missing_grant"),
    "roomJoin false": ({"video": {"roomJoin": False}}, "missing_grant"),
    "roomJoin not a boolean": ({"video": {"roomJoin": 1}}, "token_invalid"),
    "no room": ({"video": {"room": None}}, "missing_grant"),
    "room empty": ({"video": {"room": ""}}, "missing_grant"),
    "kind agent": ({"kind": "agent"}, "token_not_standard"),
    "kind unknown": ({"kind": 7}, "token_not_standard"),
    "grant agent": ({"video": {"agent": True}}, "token_not_standard"),
    "grant recorder": ({"video": {"recorder": True}}, "token_not_standard"),
}


@pytest.mark.parametrize("case", REFUSED, ids=list(REFUSED))
def test_a_token_that_is_refused(verifier: TokenVerifier, case: str) -> None:
    changes, code = REFUSED[case]
    token = _sign(_claims(**changes))

    with pytest.raises(GatewayError) as refusal:
        verifier.verify(token)

    assert refusal.value.code == code
    assert token not in refusal.value.detail


@pytest.mark.parametrize(
    "token",
    ["", "x", "a.b.c", "é.é.é", "." * 20_000, jwt.encode(_claims(), None, algorithm="none")],
    ids=["empty", "word", "not base64", "not ASCII", "too long", "unsigned"],
)
def test_what_is_not_a_signed_token_is_refused(verifier: TokenVerifier, token: str) -> None:
    with pytest.raises(GatewayError) as refusal:
        verifier.verify(token)

    assert refusal.value.code == "token_invalid"


def test_another_secret_is_refused(verifier: TokenVerifier) -> None:
    with pytest.raises(GatewayError, match="another API secret"):
        verifier.verify(_sign(_claims(), secret="another secret of more than 32 bytes"))


def test_a_token_of_the_future_is_refused(verifier: TokenVerifier) -> None:
    claims = _claims() | {"nbf": int(time.time()) + auth.LEEWAY + 60}

    with pytest.raises(GatewayError, match="not valid yet"):
        verifier.verify(jwt.encode(claims, SECRET, algorithm="HS256"))


def test_a_verified_token_is_remembered_and_still_expires() -> None:
    now = float(NOW)
    verifier = TokenVerifier({"key": SECRET}, now=lambda: now)
    token = _sign(_claims())
    first = verifier.verify(token)

    assert verifier.verify(token) is first
    now = NOW + 60 + auth.LEEWAY
    with pytest.raises(GatewayError, match="expired"):
        verifier.verify(token)


def test_remembered_tokens_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "CACHED_TOKENS", 2)
    verifier = TokenVerifier({"key": SECRET}, now=lambda: NOW)
    tokens = [_sign(_claims(sub=name)) for name in ("a", "b", "c")]
    callers = [verifier.verify(token) for token in tokens]

    assert verifier.verify(tokens[0]) is not callers[0]
    assert verifier.verify(tokens[2]) is callers[2]


CHALLENGE = 'Bearer realm="livekit"'


async def test_no_token_is_a_401_without_an_error_code(serve_memory: Serve, room: str) -> None:
    async with serve_memory() as gateway:
        for method, path in (("POST", "text"), ("GET", "topics/lk.chat/events")):
            answer = await gateway.client.request(method, f"/rooms/{room}/{path}")

            assert (answer.status_code, answer.json()["code"]) == (401, "token_missing")
            assert answer.headers["www-authenticate"] == CHALLENGE
            assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("credential", ["Bearer x", "Bearer", "Basic eDp5"])
async def test_a_bad_credential_is_a_401_with_its_reason(
    serve_memory: Serve, room: str, credential: str
) -> None:
    async with serve_memory() as gateway:
        answer = await gateway.client.post(
            f"/rooms/{room}/text", headers={"Authorization": credential}
        )

    assert (answer.status_code, answer.json()["code"]) == (401, "token_invalid")
    assert answer.headers["www-authenticate"].startswith(f'{CHALLENGE}, error="invalid_token"')


async def test_the_token_in_the_query_works_too(serve: Serve, room: str) -> None:
    async with serve() as gateway:
        answer = await gateway.client.post(
            f"/rooms/{room}/text",
            params={"access_token": gateway.token("carol", room)},
            content="hi",
            headers={"Content-Type": "text/plain"},
        )

    assert answer.status_code == 200


async def test_two_credentials_are_refused(serve_memory: Serve, room: str) -> None:
    async with serve_memory() as gateway:
        answer = await gateway.post(room, "carol", "hi", access_token=gateway.token("carol", room))

    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_parameter")


@pytest.mark.parametrize(
    ("grants", "method", "path", "code"),
    [
        ({"can_publish_data": False}, "POST", "text", "missing_grant"),
        ({"can_publish": False, "can_publish_data": None}, "POST", "text", "missing_grant"),
        ({"hidden": True}, "POST", "text", "missing_grant"),
        ({"can_subscribe": False}, "GET", "topics/lk.chat/events", "missing_grant"),
        ({"agent": True}, "POST", "text", "token_not_standard"),
    ],
)
async def test_a_missing_grant_is_a_403_with_a_challenge(
    serve_memory: Serve, room: str, grants: dict[str, Any], method: str, path: str, code: str
) -> None:
    async with serve_memory() as gateway:
        answer = await gateway.client.request(
            method,
            f"/rooms/{room}/{path}",
            headers={**gateway.bearer("carol", room, **grants), "Content-Type": "text/plain"},
        )

    assert (answer.status_code, answer.json()["code"]) == (403, code)
    assert answer.headers["www-authenticate"].startswith(f'{CHALLENGE}, error="insufficient_scope"')


async def test_a_token_for_another_room_is_a_403(serve_memory: Serve, room: str) -> None:
    async with serve_memory() as gateway:
        answer = await gateway.client.post(
            f"/rooms/{room}/text", headers=gateway.bearer("carol", "elsewhere")
        )

    assert (answer.status_code, answer.json()["code"]) == (403, "room_mismatch")


def test_grants_that_say_the_same_are_equal(verifier: TokenVerifier) -> None:
    plain, full, other = (
        verifier.verify(_sign(_claims(video=more))).grants
        for more in (
            {},
            {"canPublish": True, "canSubscribe": True, "hidden": False, "canPublishData": None},
            {"canPublish": False},
        )
    )

    assert plain == full != other

"""LiveKit access tokens: from the bytes of a credential to the caller that it proves.

Read as livekit-server reads them (raw claims, one minute of leeway, `iss` names the key, a grant
that is absent is not a grant that is false), and stricter in three places: `exp` and `sub` are
required, types are not coerced, and only tokens of ordinary participants are taken.
"""

import base64
import hashlib
import hmac
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jwt

from gateway.errors import (
    MissingGrant,
    RoomMismatch,
    TokenExpired,
    TokenInvalid,
    TokenNotStandard,
    WebhookInvalid,
)

LEEWAY = 60
"""Seconds of clock difference that are forgiven; livekit-server's own figure."""

TOKEN_BYTES = 16_384
"""Longest token that is looked at: `roomConfig` and metadata make long ones, nothing makes longer."""

CACHED_TOKENS = 10_000
"""Verified tokens remembered, about 2 KB each. A check costs 40 µs, a look-up less than one."""

RESERVED_IDENTITY = "gateway-observer-"
"""How the identities begin under which we observe; hidden, so that only operators ever see one."""

IDENTITY_BYTES = 256
"""LiveKit's limit for an identity, in bytes of UTF-8."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, and what the token says that they may do in its room."""

    identity: str
    room: str
    can_publish_data: bool
    can_subscribe: bool
    hidden: bool
    expires_at: float
    """Seconds since the epoch, leeway included: what was begun before is ended then."""
    room_admin: bool = False
    names_agents: bool = False
    """Whether the token has agents dispatched to the room that it creates (`roomConfig`)."""
    grants: str = ""
    """The `video` grants, written so that equal ones are equal."""
    issued_at: float = 0.0
    """Seconds since the epoch; 0 where the token does not say."""
    token: str = field(default="", repr=False)

    def require_room(self, room: str) -> None:
        if room != self.room:
            raise RoomMismatch(f"The token is for room {self.room!r}, the path says {room!r}.")

    def require_can_publish_data(self) -> None:
        if self.hidden:
            # LiveKit hides the sender too: receivers would see text of nobody.
            raise MissingGrant("A hidden participant cannot send; use a token without 'hidden'.")
        if not self.can_publish_data:
            raise MissingGrant(
                "The token does not allow sending: its 'canPublishData' is false, or absent with a false 'canPublish'."
            )

    def require_room_admin(self) -> None:
        if not self.room_admin:
            raise MissingGrant("This needs a token with 'roomAdmin'.")

    def require_can_subscribe(self) -> None:
        if not self.can_subscribe:
            raise MissingGrant("The token does not allow reading: its 'canSubscribe' is false.")


class TokenVerifier:
    """Verifies tokens against the API keys of one LiveKit project, and remembers those that passed."""

    def __init__(
        self, secrets_by_key: Mapping[str, str], *, now: Callable[[], float] = time.time
    ) -> None:
        self._secrets = dict(secrets_by_key)
        self._now = now
        self._verified: dict[str, Caller] = {}

    def verify(self, token: str) -> Caller:
        """The caller, or TokenInvalid, TokenExpired, TokenNotStandard, MissingGrant with what is wrong."""
        caller = self._verified.get(token)
        if caller is None:
            caller = _caller(token, self._claims(token))
            self._verified[token] = caller
            if len(self._verified) > CACHED_TOKENS:
                del self._verified[next(iter(self._verified))]
        if self._now() >= caller.expires_at:
            self._verified.pop(token, None)
            raise TokenExpired("The token has expired; get a new one from your back end.")
        return caller

    def _claims(self, token: str) -> dict[str, Any]:
        if len(token) > TOKEN_BYTES:
            raise TokenInvalid(f"The token is longer than {TOKEN_BYTES} bytes.")
        try:
            unverified = jwt.decode(token, options={"verify_signature": False})
            secret = self._secrets.get(unverified.get("iss", ""))
        except (jwt.InvalidTokenError, TypeError) as error:
            raise TokenInvalid("The token is not a JSON Web Token.") from error
        if secret is None:
            raise TokenInvalid("The token was made with an API key that is not the gateway's.")
        try:
            # exp is checked in verify, by our clock, so that cached and fresh tokens expire alike.
            claims: dict[str, Any] = jwt.decode(
                token,
                secret,
                algorithms=["HS256"],
                leeway=LEEWAY,
                options={
                    "verify_exp": False,
                    "verify_aud": False,
                    "verify_iat": False,
                    "verify_jti": False,
                    "verify_sub": False,
                },
            )
        except jwt.InvalidSignatureError as error:
            raise TokenInvalid("The token was signed with another API secret.") from error
        except jwt.ImmatureSignatureError as error:
            raise TokenInvalid("The token is not valid yet; look at the clocks ('nbf').") from error
        except jwt.InvalidTokenError as error:
            raise TokenInvalid("The token is malformed.") from error
        return claims


class WebhookVerifier:
    """Verifies LiveKit's webhooks: a token signed with the API secret carries the body's SHA-256."""

    def __init__(self, api_key: str, api_secret: str) -> None:
        self._api_key = api_key
        self._api_secret = api_secret

    def verify(self, token: str) -> str:
        """What is signed: the body's SHA-256, in base64. Raises WebhookInvalid."""
        try:
            claims = jwt.decode(
                token,
                self._api_secret,
                algorithms=["HS256"],
                issuer=self._api_key,
                leeway=LEEWAY,
                options={"require": ["exp"]},
            )
        except jwt.InvalidTokenError as error:
            raise WebhookInvalid(
                "The webhook is not signed with LIVEKIT_API_KEY and LIVEKIT_API_SECRET."
            ) from error
        signed = claims.get("sha256")
        if not isinstance(signed, str):
            raise WebhookInvalid("The webhook's token does not sign a body ('sha256').")
        return signed

    def verify_body(self, signed: str, body: bytes) -> None:
        """Raises WebhookInvalid where the body is another than what `verify` returned."""
        digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
        if not hmac.compare_digest(signed.encode("utf-8", "replace"), digest.encode()):
            raise WebhookInvalid("The webhook's body is not the one that was signed.")


def _caller(token: str, claims: Mapping[str, Any]) -> Caller:
    identity = claims.get("sub")
    if not isinstance(identity, str) or not identity:
        raise TokenInvalid("The token has no identity: 'sub' is missing or not a string.")
    if len(identity.encode("utf-8", "surrogatepass")) > IDENTITY_BYTES:
        raise TokenInvalid(f"The token's identity is longer than {IDENTITY_BYTES} bytes.")
    if not _is_text(identity):
        raise TokenInvalid("The token's identity is not valid text.")
    if identity.startswith(RESERVED_IDENTITY):
        raise TokenNotStandard(
            f"Identities that begin with {RESERVED_IDENTITY!r} are the gateway's own."
        )
    expires = claims.get("exp")
    if isinstance(expires, bool) or not isinstance(expires, int | float) or not 0 < expires < 1e12:
        raise TokenInvalid("The token has no time of expiry: 'exp' is missing or not a time.")
    grants = claims.get("video")
    if not isinstance(grants, dict):
        raise MissingGrant("The token has no 'video' grants, so it opens no room.")
    _require_standard(claims, grants)
    if _grant(grants, "roomJoin") is not True:
        raise MissingGrant(
            "The token does not allow joining: its 'roomJoin' is not true, which presence=none needs, too."
        )
    room = grants.get("room")
    if not isinstance(room, str) or not room:
        raise MissingGrant("The token names no room: its 'room' is missing or empty.")
    can_publish = _grant(grants, "canPublish", default=True)
    return Caller(
        # Most tokens of a room are alike, and there may be thousands of them.
        identity=sys.intern(identity),
        room=sys.intern(room),
        can_publish_data=_grant(grants, "canPublishData", default=can_publish),
        can_subscribe=_grant(grants, "canSubscribe", default=True),
        hidden=_grant(grants, "hidden"),
        expires_at=expires + LEEWAY,
        room_admin=_grant(grants, "roomAdmin"),
        names_agents=_names_agents(claims.get("roomConfig")),
        grants=sys.intern(_written(grants, can_publish)),
        issued_at=_issued_at(claims),
        token=token,
    )


def _written(grants: Mapping[str, Any], can_publish: bool) -> str:
    """With their defaults filled in: a grant that is absent and one that says the same are equal."""
    defaults = {"canPublish": can_publish, "canPublishData": can_publish, "canSubscribe": True}
    given = {name: value for name, value in grants.items() if value is not None}
    told = {name: value for name, value in {**defaults, **given}.items() if value is not False}
    return json.dumps(told, sort_keys=True)


def _names_agents(room_config: object) -> bool:
    return isinstance(room_config, dict) and bool(room_config.get("agents"))


def _issued_at(claims: Mapping[str, Any]) -> float:
    """`iat`, which not all of LiveKit's SDKs write, or `nbf`, which most do."""
    for name in ("iat", "nbf"):
        value = claims.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    return 0.0


def _require_standard(claims: Mapping[str, Any], grants: Mapping[str, Any]) -> None:
    """Others than ordinary participants would have rights here that nobody meant to give.

    A visible participant of kind agent, for one, is taken for *the* agent by front ends.
    """
    if claims.get("kind", "") not in ("", "standard"):
        raise TokenNotStandard("The token's 'kind' is not 'standard'; use a participant's token.")
    for grant in ("agent", "recorder"):
        if _grant(grants, grant):
            raise TokenNotStandard(
                f"The token has the grant '{grant}'; use an ordinary participant's token."
            )


def _grant(grants: Mapping[str, Any], name: str, *, default: bool = False) -> bool:
    value = grants.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise TokenInvalid(f"The token's grant '{name}' is not a boolean.")
    return value


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in value

"""Making access tokens: as an application's back end does, for the command line; and our own, to observe."""

from datetime import timedelta

from livekit import api


def mint(
    api_key: str,
    api_secret: str,
    *,
    room: str,
    identity: str,
    ttl: timedelta,
    hidden: bool = False,
    admin: bool = False,
) -> str:
    """A token with which `identity` may join `room`, read and send; a hidden one only reads, an
    administrator's also does so without being in the room, and registers topics."""
    grants = api.VideoGrants(
        room_join=True, room=room, hidden=hidden or None, room_admin=admin or None
    )
    return (
        api.AccessToken(api_key, api_secret)
        .with_identity(identity)
        .with_grants(grants)
        .with_ttl(ttl)
        .to_jwt()
    )


OBSERVER_TTL = timedelta(minutes=10)
"""For the join only: LiveKit renews the token of who is connected."""


def mint_observer(api_key: str, api_secret: str, *, room: str, identity: str) -> str:
    """A token to read a room unseen, and to send on behalf of others, which LiveKit lets agents do.

    Hidden, for a visible participant of kind agent would be taken for the room's agent.
    """
    grants = api.VideoGrants(
        room_join=True, room=room, hidden=True, can_publish=False, can_publish_data=True
    )
    return (
        api.AccessToken(api_key, api_secret)
        .with_identity(identity)
        .with_kind("agent")
        .with_grants(grants)
        .with_ttl(OBSERVER_TTL)
        .to_jwt()
    )

"""Making access tokens, as an application's back end does; here for the command line."""

from datetime import timedelta

from livekit import api


def mint(
    api_key: str, api_secret: str, *, room: str, identity: str, hidden: bool, ttl: timedelta
) -> str:
    """A token with which `identity` may join `room`, read and send; a hidden one only reads."""
    grants = api.VideoGrants(room_join=True, room=room, hidden=True if hidden else None)
    return (
        api.AccessToken(api_key, api_secret)
        .with_identity(identity)
        .with_grants(grants)
        .with_ttl(ttl)
        .to_jwt()
    )

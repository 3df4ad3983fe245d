"""Participants of LiveKit's SDK whose leaving is waited for."""

from livekit import rtc

from gateway.rooms.farewell import leave_again
from gateway.settings import Settings
from tools.livekit_server import LiveKitServer


async def leave_for_good(sdk_room: rtc.Room, server: LiveKitServer | Settings) -> None:
    """By the SDK alone LiveKit does not hear of each leaving: see `gateway.rooms.farewell`."""
    if isinstance(server, LiveKitServer):
        url, credentials = server.url, (server.api_key, server.api_secret)
    else:
        url = server.livekit_url
        credentials = (server.livekit_api_key, server.livekit_api_secret)
    local = sdk_room.local_participant
    await sdk_room.disconnect()
    await leave_again(
        url,
        credentials,
        sdk_room.name,
        local.identity,
        local.sid,
        rtc.DisconnectReason.CLIENT_INITIATED,
    )

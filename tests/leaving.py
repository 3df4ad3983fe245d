"""Participants of LiveKit's SDK whose leaving is waited for."""

from livekit import rtc

from gateway.rooms.livekit import LiveKitRooms
from gateway.settings import Settings
from tools.livekit_server import LiveKitServer


async def leave_for_good(sdk_room: rtc.Room, server: LiveKitServer | Settings) -> None:
    """By the SDK alone LiveKit does not hear of each leaving: see `gateway.rooms.farewell`."""
    if isinstance(server, LiveKitServer):
        where = server.url, server.api_key, server.api_secret
    else:
        where = server.livekit_url, server.livekit_api_key, server.livekit_api_secret
    rooms = LiveKitRooms(*where, max_stream_bytes=1)
    local = sdk_room.local_participant
    await sdk_room.disconnect()
    reason = rtc.DisconnectReason.CLIENT_INITIATED
    await rooms.see_off(sdk_room.name, local.identity, local.sid, reason)
    await rooms.aclose()

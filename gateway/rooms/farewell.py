"""That LiveKit hears of a leaving.

LiveKit's SDK sends it as the last thing on its signal connection, and closes that without reading on. What
the server has sent in that moment lies unread then, so the kernel resets the connection, and a reset takes
what the server has not read yet with it: our leaving. (Seen in 1 to 6 of 100, the more the more the room
has to tell.) LiveKit takes us for one whose network failed and keeps us in the room for 20 s; and an agent
does not learn that we left for good.
"""

from collections.abc import Awaitable, Callable
from urllib.parse import urlencode

import aiohttp
from livekit import rtc
from livekit.protocol.rtc import LeaveRequest, SignalRequest, SignalResponse

PROTOCOL = 16
"""Of LiveKit's signalling: the newest version that asks nothing of us that leaving does not need."""


async def leave_again(
    http: aiohttp.ClientSession,
    url: str,
    token: str,
    is_there: Callable[[], Awaitable[bool]],
    reason: rtc.DisconnectReason.ValueType,
) -> None:
    """Takes the signal connection of the token's participant up again, as after a lost network, and says on
    it that it leaves; reads on until LiveKit has closed it.

    LiveKit resumes whoever has that identity. `is_there` tells whether that is still the one who left: one
    that has come since connects its signalling anew, if its joining was complete, and fails to join else. So
    this is for right after a look, and no join of ours may be under way. A room that has ended since that
    look is opened again, empty.

    Raises aiohttp.ClientError, and what `is_there` raises; takes as long as LiveKit does.
    """
    query = urlencode({"reconnect": 1, "protocol": PROTOCOL, "auto_subscribe": 0})
    farewell = SignalRequest(
        leave=LeaveRequest(
            reason=rtc.DisconnectReason.Name(reason), action=LeaveRequest.Action.DISCONNECT
        )
    ).SerializeToString()
    async with http.ws_connect(
        f"{url.rstrip('/')}/rtc?{query}", headers={"Authorization": f"Bearer {token}"}
    ) as signalling:
        async for message in signalling:
            if message.type is not aiohttp.WSMsgType.BINARY:
                continue
            kind = SignalResponse.FromString(message.data).WhichOneof("message")
            if kind == "leave":
                return  # it is not there any more
            if kind == "reconnect":
                if not await is_there():
                    return
                await signalling.send_bytes(farewell)

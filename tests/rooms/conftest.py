"""The SDK as it is, and as one that we do not know."""

from typing import Any

import pytest
from livekit import rtc
from livekit.rtc import _ffi_client


@pytest.fixture
def unknown_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    """An SDK with a private part that has another form than we know, used by nobody before us."""
    stock = rtc.Room._on_room_event

    def on_room_event(self: rtc.Room, event_of_another_name: Any) -> None:
        stock(self, event_of_another_name)

    monkeypatch.setattr(rtc.Room, "_on_room_event", on_room_event)
    _ffi_client.FfiClient.instance._ffi_lib.livekit_ffi_initialize(
        _ffi_client.ffi_event_callback, True, b"python", rtc.__version__.encode()
    )

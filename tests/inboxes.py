"""Both ways in which the native library's events are taken in, for tests that hold for both."""

import pytest

from gateway.rooms.native.inbox import CompiledInbox, InterpretedInbox

INBOXES = (
    pytest.param(CompiledInbox, id="compiled", marks=pytest.mark.needs("cc")),
    pytest.param(InterpretedInbox, id="interpreted"),
)

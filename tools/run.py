"""`make run`: a LiveKit server (unless LIVEKIT_URL names one) and the gateway, and what to try."""

import sys
from collections.abc import Mapping
from contextlib import ExitStack
from typing import NoReturn
from urllib.parse import quote

from tools.stack import ROOM, Stack, curl, make_token, run_until_stopped, start_stack, watch

TOPIC = "lk.chat"


def main() -> int:
    return run_until_stopped(_run)


def _run(started: ExitStack, environ: Mapping[str, str]) -> NoReturn:
    stack = start_stack(started, environ)
    print(_what_to_try(stack), flush=True)
    watch(stack.check)


def _what_to_try(stack: Stack) -> str:
    """Three identities: two places with the same one would share, or evict, each other's session."""
    page, reader, sender = (
        make_token(stack.gateway, identity) for identity in ("alice", "bob", "carol")
    )
    read = curl(reader, "-N", f"{stack.room_address}/topics/{TOPIC}/events")
    text = ("-H", "Content-Type: text/plain", "-d", "Hello from curl")
    send = curl(sender, f"{stack.room_address}/text", *text)
    return f"""
{stack}

In a browser (room {ROOM}, as alice):
  {stack.gateway.address}/#token={quote(page)}

In a terminal, to read (as bob):
  {read}

In another one, to write (as carol):
  {send}

Ctrl-C ends everything.
"""


if __name__ == "__main__":
    sys.exit(main())

"""What `make run` and `make demo` start: a LiveKit server (unless LIVEKIT_URL names one) and the gateway.

We are the parent of both. Ctrl-C and SIGTERM end what was started last first: the gateway, so that it
can take leave of its rooms, before LiveKit; when one of them ends by itself, we end the other and say so.
"""

import errno
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import NoReturn

from tools.child_process import ChildEnded, ChildNotReady, ChildProcess, http_status
from tools.livekit_server import (
    LiveKitServer,
    LiveKitServerError,
    LiveKitServerFailed,
    find_livekit_server,
    start_livekit_server,
)

GATEWAY_PORT = 8080
"""The gateway's own default, which every example names."""

READY_SECONDS = 30.0
"""The gateway is ready within two seconds; a cold disk and a far LiveKit server need more."""

GATEWAY_STOP_SECONDS = 10.0
"""Twice what the gateway gives its event streams to end by themselves."""

TOKEN_SECONDS = 30.0
"""Making a token is the start of a Python program, and nothing more."""

WATCH_SECONDS = 0.2
"""How late we notice that a child ended by itself."""

ROOM = "demo"
TOKEN_TTL = "6h"  # noqa: S105 - a day's work; a token that outlives the server opens nothing
SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


class StopRequested(Exception):
    """A person, or whoever runs us, wants us to end."""


class RunError(Exception):
    """It cannot go on; the text is for a person."""


@dataclass(frozen=True, slots=True)
class LiveKit:
    url: str
    api_key: str
    api_secret: str = field(repr=False)
    server: LiveKitServer | None = None
    """The one that we started; None when LIVEKIT_URL names another."""


@dataclass(frozen=True, slots=True)
class Gateway:
    child: ChildProcess
    host: str
    port: int
    environ: Mapping[str, str] = field(repr=False)

    @property
    def address(self) -> str:
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Stack:
    livekit: LiveKit
    gateway: Gateway

    @property
    def room_address(self) -> str:
        return f"{self.gateway.address}/rooms/{ROOM}"

    def __str__(self) -> str:
        return (
            f"The gateway is at {self.gateway.address}, in front of LiveKit at {self.livekit.url}."
        )

    def check(self) -> None:
        """Raise when one of them has ended by itself."""
        exit_code = self.gateway.child.poll()
        if exit_code is not None:
            raise RunError(
                f"The gateway ended by itself (exit code {exit_code}). Its log is above."
            )
        server = self.livekit.server
        if server is not None and not server.running:
            raise LiveKitServerFailed(
                f"The LiveKit server ended by itself. The end of its log, {server.log}:\n"
                f"{server.last_log_lines()}"
            )


# From the start to the end


def run_until_stopped(run: Callable[[ExitStack, Mapping[str, str]], NoReturn]) -> int:
    """Our exit code. `run` leaves with the stack what it has started, and is broken off by a signal."""
    for number in SIGNALS:
        signal.signal(number, _request_stop)
    try:
        with ExitStack() as started:
            try:
                run(started, os.environ)
            finally:
                _ignore_signals()
    except StopRequested:
        return 0
    except (RunError, LiveKitServerError) as error:
        report(str(error))
        return 1


def _request_stop(number: int, frame: FrameType | None) -> NoReturn:
    raise StopRequested


def _ignore_signals() -> None:
    """From here on we stop, and an impatient person's second Ctrl-C must not break that off."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def start_stack(started: ExitStack, environ: Mapping[str, str]) -> Stack:
    """LiveKit and the gateway, once they are ready."""
    host, port = _gateway_address(environ)
    livekit = _livekit(started, environ, _webhook_url(host, port))
    return Stack(livekit, _start_gateway(started, livekit, host, port, environ))


def watch(*checks: Callable[[], None]) -> NoReturn:
    """Until one of them raises, or a signal comes."""
    while True:
        for check in checks:
            check()
        time.sleep(WATCH_SECONDS)


def log_file(started: ExitStack, name: str, failure: type[Exception]) -> Path:
    """A child's log, kept only after its failure: then a person is told where it is."""
    handle, path = tempfile.mkstemp(prefix=f"{name}-", suffix=".log")
    os.close(handle)
    log = Path(path)

    def tidy(kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or not issubclass(kind, failure):
            log.unlink(missing_ok=True)

    started.push(tidy)
    return log


# LiveKit


def _livekit(started: ExitStack, environ: Mapping[str, str], webhook_url: str) -> LiveKit:
    if environ.get("LIVEKIT_URL"):
        return _named_livekit(environ)
    binary = find_livekit_server(report)
    log = log_file(started, "livekit-server", LiveKitServerError)
    server = started.enter_context(
        start_livekit_server(binary, report=report, log=log, webhook_urls=[webhook_url])
    )
    return LiveKit(server.url, server.api_key, server.api_secret, server)


def _webhook_url(host: str, port: int) -> str:
    """Where our own LiveKit server tells the gateway of rooms: over loopback, wherever it listens."""
    local = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - not to listen on
    return f"http://{f'[{local}]' if ':' in local else local}:{port}/webhooks/livekit"


def _named_livekit(environ: Mapping[str, str]) -> LiveKit:
    missing = [name for name in ("LIVEKIT_API_KEY", "LIVEKIT_API_SECRET") if not environ.get(name)]
    if missing:
        raise RunError(f"LIVEKIT_URL is set, so set {' and '.join(missing)} too.")
    return LiveKit(
        environ["LIVEKIT_URL"], environ["LIVEKIT_API_KEY"], environ["LIVEKIT_API_SECRET"]
    )


# The gateway


def _gateway_address(environ: Mapping[str, str]) -> tuple[str, int]:
    host = environ.get("GATEWAY_HOST") or "127.0.0.1"
    named = environ.get("GATEWAY_PORT")
    if not named:
        return host, _free_port(host)
    if not named.isdecimal() or not 0 < int(named) < 65_536:
        raise RunError(f"GATEWAY_PORT must be a number from 1 to 65535, not {named!r}.")
    if not _is_free(host, int(named)):
        raise RunError(
            f"Port {named} is taken by another program: set GATEWAY_PORT to another one."
        )
    return host, int(named)


def _free_port(host: str) -> int:
    if _is_free(host, GATEWAY_PORT):
        return GATEWAY_PORT
    with _listener(host, 0) as free:
        port: int = free.getsockname()[1]
    report(f"Port {GATEWAY_PORT} is taken by another program: the gateway gets {port}.")
    return port


def _is_free(host: str, port: int) -> bool:
    try:
        _listener(host, port).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return False
        raise RunError(f"The gateway cannot listen at {host}, port {port}: {error}.") from error
    return True


def _listener(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family)


def _start_gateway(
    started: ExitStack, livekit: LiveKit, host: str, port: int, environ: Mapping[str, str]
) -> Gateway:
    env = {
        **environ,
        "LIVEKIT_URL": livekit.url,
        "LIVEKIT_API_KEY": livekit.api_key,
        "LIVEKIT_API_SECRET": livekit.api_secret,
        "GATEWAY_HOST": host,
        "GATEWAY_PORT": str(port),
    }
    # What it prints is a log as well: our standard output is the block with what to try.
    child = ChildProcess([sys.executable, "-m", "gateway"], env=env, output=sys.stderr.fileno())
    started.callback(child.stop, within=GATEWAY_STOP_SECONDS)
    gateway = Gateway(child, {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port, env)  # noqa: S104
    try:
        child.wait_until(lambda: _is_ready(gateway), within=READY_SECONDS)
    except (ChildEnded, ChildNotReady) as error:
        raise RunError(f"The gateway did not start: {error}. Its log is above.") from error
    return gateway


def _is_ready(gateway: Gateway) -> bool:
    return http_status(gateway.host, gateway.port, "/readyz") == 200


# What to try


def curl(token: str, *words: str) -> str:
    """A command to paste into a terminal."""
    return shlex.join(["curl", *words, "-H", f"Authorization: Bearer {token}"])


def make_token(gateway: Gateway, identity: str) -> str:
    """For the room that the examples are in."""
    command = [sys.executable, "-m", "gateway", "token"]
    command += ["--room", ROOM, "--identity", identity, "--ttl", TOKEN_TTL]
    try:
        made = subprocess.run(
            command,
            env=gateway.environ,
            capture_output=True,
            text=True,
            timeout=TOKEN_SECONDS,
            # The terminal's Ctrl-C would make it die with a traceback of its own.
            start_new_session=True,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise RunError(f"No token could be made within {TOKEN_SECONDS:g} s.") from error
    if made.returncode != 0:
        raise RunError(f"No token could be made:\n{made.stderr.strip()}")
    return made.stdout.strip()

"""`python -m gateway` as a process that is killed and started again at the same address."""

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tools.child_process import ChildProcess, http_status, last_lines
from tools.livekit_server import LiveKitServer

START_SECONDS = 20.0
"""On a busy machine; it takes one."""

STOP_SECONDS = 10.0
"""Twice what it gives its event streams to end by themselves."""


class GatewayProcess:
    def __init__(self, livekit: LiveKitServer, log: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port: int = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"
        self.log = log
        self._environ = {
            **{name: value for name, value in os.environ.items() if "GATEWAY_" not in name},
            "LIVEKIT_URL": livekit.url,
            "LIVEKIT_API_KEY": livekit.api_key,
            "LIVEKIT_API_SECRET": livekit.api_secret,
            "GATEWAY_PORT": str(self._port),
        }
        self._child: ChildProcess | None = None

    async def start(self) -> None:
        """Returns when it is ready."""
        with self.log.open("ab") as output:
            command = [sys.executable, "-m", "gateway"]
            self._child = ChildProcess(command, env=self._environ, output=output)
        await asyncio.to_thread(self._child.wait_until, self._is_ready, within=START_SECONDS)

    async def stop(self) -> None:
        """By SIGTERM; returns when it has ended."""
        assert self._child is not None
        await asyncio.to_thread(self._child.stop, within=STOP_SECONDS)

    async def kill(self) -> None:
        if self._child is not None:
            await asyncio.to_thread(self._child.kill)

    def _is_ready(self) -> bool:
        return http_status("127.0.0.1", self._port, "/readyz") == 200


@asynccontextmanager
async def gateway_process(livekit: LiveKitServer, log: Path) -> AsyncIterator[GatewayProcess]:
    """A started one; its log is shown when the test fails."""
    gateway = GatewayProcess(livekit, log)
    try:
        await gateway.start()
        yield gateway
    except BaseException:
        print(last_lines(log, 40))
        raise
    finally:
        await gateway.kill()

"""A program that we start: it gets ready under a deadline, and it never outlives us.

A child is in a session of its own, so a terminal's Ctrl-C reaches only us and we end our children in
the order that they need. That alone would leave them behind when we are killed. The kernel's
parent-death signal would not do: it fires when the *thread* that started the child ends, and exists
on Linux only. So beside each child waits a keeper, a shell whose standard input is a pipe from us:
it reads the end of that pipe however we end, by SIGKILL too, and then kills the child.
"""

import http.client
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Self

READY_POLL_SECONDS = 0.05
"""How late we may notice that a child is ready; a probe costs a connection."""

PROBE_SECONDS = 2.0
"""A server that is up answers its probe in milliseconds; one that hangs must not hold us."""

KILL_SECONDS = 5.0
"""The kernel ends a killed process at once, unless a disk or a file system hangs."""

TAIL_BYTES = 16 * 1024
"""Of a log that is told to a person; a server that ran for days may have gigabytes of it."""

_KEEPER = 'read -r _; kill -s KILL -- "-$1"'


class ChildEnded(Exception):
    """The child ended while we waited for it."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"exit code {exit_code}")
        self.exit_code = exit_code


class ChildNotReady(Exception):
    """The child runs, and did not get ready within its time."""


class ChildProcess:
    def __init__(
        self, command: Sequence[str | Path], *, env: Mapping[str, str], output: IO[bytes] | int
    ) -> None:
        """Start `command`; what it prints and logs goes to `output`."""
        self._process = subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        self._keeper = _start_keeper(self.pid)

    @property
    def pid(self) -> int:
        return self._process.pid

    def poll(self) -> int | None:
        """The exit code, or None while the child runs."""
        return self._process.poll()

    def wait(self, seconds: float) -> int | None:
        """The exit code, or None when the child still runs after `seconds`."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return self.poll()

    def wait_until(self, ready: Callable[[], bool], *, within: float) -> None:
        """Return once `ready()`; ChildEnded or ChildNotReady if it will not be."""
        deadline = time.monotonic() + within
        while not ready():
            if self.wait(READY_POLL_SECONDS) is not None:
                break
            if time.monotonic() > deadline:
                raise ChildNotReady(f"not ready after {within:g} s")
        # Also when something answered: it may have been another program on the child's port.
        exit_code = self.poll()
        if exit_code is not None:
            raise ChildEnded(exit_code)

    def wait_or_kill(self, ready: Callable[[], bool], *, within: float) -> None:
        """As `wait_until`; a child that we do not see ready, whatever the reason, is killed first."""
        try:
            self.wait_until(ready, within=within)
        except BaseException:
            self.kill()
            raise

    def stop(self, *, within: float, insist_every: float | None = None) -> None:
        """Ask the child to end (SIGTERM), again every `insist_every` seconds; then kill it.

        Allowed at any time, also when the child has ended.
        """
        deadline = time.monotonic() + within
        while self.poll() is None:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                self._kill_group()
                self._process.wait(KILL_SECONDS)
                break
            self._process.terminate()
            self.wait(min(remaining, insist_every or remaining))
        self._dismiss_keeper()

    def kill(self) -> None:
        """End the child as a crash would: it gets no chance to say goodbye."""
        self.stop(within=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def _kill_group(self) -> None:
        if os.name == "posix":
            # What the child started itself (a build's compilers) is in its group.
            os.killpg(self.pid, signal.SIGKILL)
        else:
            self._process.kill()

    def _dismiss_keeper(self) -> None:
        keeper, self._keeper = self._keeper, None
        if keeper is None:
            return
        # Killed before its pipe is closed: once the child is gone its number may be another's.
        keeper.kill()
        keeper.wait(KILL_SECONDS)
        if keeper.stdin is not None:
            keeper.stdin.close()


def _start_keeper(pid: int) -> subprocess.Popen[bytes] | None:
    if os.name != "posix":
        return None
    return subprocess.Popen(
        ["/bin/sh", "-c", _KEEPER, "keeper", str(pid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def http_status(host: str, port: int, path: str) -> int | None:
    """The status of `GET path`, or None when nothing there speaks HTTP (yet).

    http.client rather than urllib: a proxy set in the environment must not answer for our child.
    """
    connection = http.client.HTTPConnection(host, port, timeout=PROBE_SECONDS)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def last_lines(log: Path, count: int = 15) -> str:
    """The last lines of a log that may still be written, or be missing."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL_BYTES))
            lines = file.read(TAIL_BYTES).decode(errors="replace").splitlines()
    except OSError:
        lines = []
    return "\n".join(lines[-count:]) or "(its log is empty)"

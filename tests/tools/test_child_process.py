import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tools.child_process import (
    TAIL_BYTES,
    ChildEnded,
    ChildNotReady,
    ChildProcess,
    http_status,
    last_lines,
)

DEADLINE = 5.0
DEAF = ["/bin/sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 60; done"]

PARENT = """
import signal, sys
from tools.child_process import ChildProcess
child = ChildProcess(["sleep", "60"], env={"PATH": "/usr/bin:/bin"}, output=sys.stdout.fileno())
print(child.pid, flush=True)
signal.pause()
"""


def start(*command: str, output: int = subprocess.DEVNULL) -> ChildProcess:
    return ChildProcess(command, env=dict(os.environ), output=output)


def test_a_child_ends_with_a_parent_that_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline().strip().isdigit()
        parent.kill()
        # The child holds the pipe's other end, so this returns only when the child is gone too.
        rest, _ = parent.communicate(timeout=DEADLINE)
    assert rest == b""


def test_a_terminals_ctrl_c_does_not_reach_a_child() -> None:
    with start("sleep", "60") as child:
        assert os.getpgid(child.pid) == child.pid != os.getpgrp()
        assert os.getsid(child.pid) == child.pid


def test_a_child_that_is_asked_to_stop_may_say_goodbye(tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = "trap 'echo goodbye; exit 3' TERM; echo hello; while :; do sleep 0.01; done"
    with log.open("wb") as output, start("/bin/sh", "-c", script, output=output.fileno()) as child:
        child.wait_until(lambda: log.read_text() == "hello\n", within=DEADLINE)
        child.stop(within=DEADLINE)
        assert (child.poll(), log.read_text()) == (3, "hello\ngoodbye\n")
        child.stop(within=DEADLINE)


def test_a_child_that_does_not_listen_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as output, start(*DEAF, output=output.fileno()) as child:
        child.wait_until(lambda: log.read_text() == "deaf\n", within=DEADLINE)
        child.stop(within=0.1, insist_every=0.03)
        assert child.poll() == -signal.SIGKILL


def test_a_killed_child_takes_along_what_it_started() -> None:
    reading, writing = os.pipe()
    with open(reading, "rb") as pipe:
        with start("/bin/sh", "-c", "sleep 60 & echo up; wait", output=writing):
            os.close(writing)
            assert pipe.readline() == b"up\n"
        started = time.monotonic()
        assert pipe.read() == b""
        assert time.monotonic() - started < DEADLINE


def test_waiting_for_a_child_that_ends_is_an_error_at_once() -> None:
    with start("/bin/sh", "-c", "exit 7") as child:
        with pytest.raises(ChildEnded, match="exit code 7"):
            child.wait_until(lambda: False, within=DEADLINE)
        # Something else on its port may answer in its place.
        with pytest.raises(ChildEnded, match="exit code 7"):
            child.wait_until(lambda: True, within=DEADLINE)


def test_waiting_for_a_child_has_an_end() -> None:
    with (
        start("sleep", "60") as child,
        pytest.raises(ChildNotReady, match=r"not ready after 0\.1 s"),
    ):
        child.wait_until(lambda: False, within=0.1)


def test_a_child_that_is_not_seen_ready_is_killed(tmp_path: Path) -> None:
    def broken_off() -> bool:
        raise KeyboardInterrupt

    log = tmp_path / "log"
    for ready, raised in ((lambda: False, ChildNotReady), (broken_off, KeyboardInterrupt)):
        with log.open("wb") as output, start(*DEAF, output=output.fileno()) as child:
            child.wait_until(lambda: log.read_text() == "deaf\n", within=DEADLINE)
            with pytest.raises(raised):
                child.wait_or_kill(ready, within=0.1)
            assert child.poll() == -signal.SIGKILL


def test_where_nothing_listens_there_is_no_status(unused_port: int) -> None:
    assert http_status("127.0.0.1", unused_port, "/") is None


def test_the_last_lines_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert last_lines(log) == "(its log is empty)"
    log.write_text("x" * TAIL_BYTES + "\none\ntwo\nthree\n")
    assert last_lines(log, 2) == "two\nthree"

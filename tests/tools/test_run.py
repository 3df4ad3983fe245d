"""`make run` as a person meets it: started as a process, read, pasted from, and ended by a signal."""

import asyncio
import os
import re
import signal
import socket
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.polling import poll_until
from tests.tools.running_tool import (
    DEADLINE,
    START_SECONDS,
    a_child_of,
    bearer,
    identity,
    pasted,
    port_of,
    running_tool,
    the_line,
)
from tools.child_process import http_status
from tools.livekit_server import start_livekit_server
from tools.stack import GATEWAY_PORT

run = partial(running_tool, "tools.run")


@pytest.mark.usefixtures("livekit_binary")
async def test_what_it_prints_works_when_pasted_and_ctrl_c_ends_everything(
    unused_port: int,
) -> None:
    async with run(GATEWAY_PORT=str(unused_port)) as running:
        text = await running.ready()
        page = the_line(text, "http")
        read, write = (
            the_line(text, "curl -N"),
            the_line(text, f"curl http://127.0.0.1:{unused_port}"),
        )
        assert urlsplit(page).netloc == f"127.0.0.1:{unused_port}"
        token = urlsplit(page).fragment.removeprefix("token=")
        assert [identity(token), identity(bearer(read)), identity(bearer(write))] == [
            *("alice", "bob", "carol")
        ]
        async with asyncio.timeout(DEADLINE), pasted(read) as events:
            await events.readuntil(b"event: gateway.opened\n")
            async with pasted(write) as answer:
                assert b'"stream_id"' in await answer.read()
            await events.readuntil(b"Hello from curl")
            running.process.send_signal(signal.SIGINT)
            assert b"event: gateway.closing" in await events.read()
        exit_code, _ = await running.end()
        assert exit_code == 0
        assert http_status("127.0.0.1", unused_port, "/livez") is None
        assert http_status("127.0.0.1", port_of(text, "LiveKit at ws://127.0.0.1"), "/") is None


async def test_a_livekit_server_that_is_named_is_used_and_left_running(
    livekit_binary: Path, tmp_path: Path
) -> None:
    with ExitStack() as held:
        server = start_livekit_server(livekit_binary, report=print, log=tmp_path / "log", port=0)
        held.enter_context(server)
        with suppress(OSError):  # one that another program has already is taken as well
            held.enter_context(socket.create_server(("127.0.0.1", GATEWAY_PORT)))
        named = {"LIVEKIT_API_KEY": server.api_key, "LIVEKIT_API_SECRET": server.api_secret}
        async with run(LIVEKIT_URL=server.url, **named) as running:
            text = await running.ready()
            assert f"in front of LiveKit at {server.url}." in text
            port = port_of(text, "The gateway is at http://127.0.0.1")
            assert port != GATEWAY_PORT
            running.process.send_signal(signal.SIGTERM)
            exit_code, log = await running.end()
        assert exit_code == 0
        assert f"Port {GATEWAY_PORT} is taken by another program: the gateway gets {port}." in log
        assert http_status("127.0.0.1", server.ports.signal, "/") == 200


async def test_when_the_livekit_server_ends_by_itself_so_does_the_gateway(
    livekit_binary: Path, tmp_path: Path, unused_port: int
) -> None:
    pid = tmp_path / "pid"
    wrapper = tmp_path / "livekit-server"
    wrapper.write_text(f'#!/bin/sh\necho $$ > {pid}\nexec {livekit_binary} "$@"\n')
    wrapper.chmod(0o755)
    async with run(GATEWAY_PORT=str(unused_port), LIVEKIT_SERVER_BIN=str(wrapper)) as running:
        await running.ready()
        os.kill(int(pid.read_text()), signal.SIGKILL)
        exit_code, log = await running.end()
    assert exit_code == 1
    told = re.search(r"The LiveKit server ended by itself. The end of its log, (.+):\n(.+)", log)
    assert told is not None
    assert told[2] in Path(told[1]).read_text()
    Path(told[1]).unlink()
    assert http_status("127.0.0.1", unused_port, "/livez") is None


@pytest.mark.usefixtures("livekit_binary")
async def test_when_the_gateway_ends_by_itself_so_does_the_livekit_server(unused_port: int) -> None:
    async with run(GATEWAY_PORT=str(unused_port)) as running:
        text = await running.ready()
        os.kill(await a_child_of(running.process.pid, "-m gateway"), signal.SIGKILL)
        exit_code, log = await running.end()
    assert exit_code == 1
    assert "The gateway ended by itself (exit code -9). Its log is above." in log
    assert http_status("127.0.0.1", port_of(text, "LiveKit at ws://127.0.0.1"), "/") is None


async def test_ctrl_c_while_it_starts_is_no_error(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    never_ready = tmp_path / "livekit-server"
    never_ready.write_text(f"#!/bin/sh\necho $$ > {pid}.new; mv {pid}.new {pid}\nexec sleep 60\n")
    never_ready.chmod(0o755)
    async with run(LIVEKIT_SERVER_BIN=str(never_ready)) as running:
        await poll_until(pid.exists, within=START_SECONDS)
        running.process.send_signal(signal.SIGINT)
        exit_code, _ = await running.end()
    assert exit_code == 0
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


async def test_a_port_that_was_asked_for_and_is_taken_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with run(GATEWAY_PORT=str(port)) as running:
            assert await running.end() == (
                1,
                f"Port {port} is taken by another program: set GATEWAY_PORT to another one.\n",
            )


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            {"LIVEKIT_URL": "ws://127.0.0.1:7880"},
            "LIVEKIT_URL is set, so set LIVEKIT_API_KEY and LIVEKIT_API_SECRET too.",
        ),
        (
            {"LIVEKIT_URL": "ws://127.0.0.1:7880", "LIVEKIT_API_KEY": "key"},
            "LIVEKIT_URL is set, so set LIVEKIT_API_SECRET too.",
        ),
        (
            {"GATEWAY_PORT": "http"},
            "GATEWAY_PORT must be a number from 1 to 65535, not 'http'.",
        ),
        (
            {"LIVEKIT_SERVER_BIN": "/nowhere/livekit-server"},
            "LIVEKIT_SERVER_BIN is /nowhere/livekit-server, and that is no program that can be run here.",
        ),
    ],
)
async def test_a_setting_that_is_wrong_is_told_in_one_line(
    settings: dict[str, str], told: str
) -> None:
    async with run(**settings) as running:
        exit_code, log = await running.end()
    assert exit_code == 1
    assert log.splitlines()[-1] == told


@pytest.mark.usefixtures("livekit_binary")
async def test_a_gateway_that_does_not_start_is_told_below_its_own_words(unused_port: int) -> None:
    async with run(GATEWAY_PORT=str(unused_port), GATEWAY_HEARTBEAT="often") as running:
        exit_code, log = await running.end()
    assert exit_code == 1
    assert re.search(r"GATEWAY_HEARTBEAT.*\n(.*\n)*The gateway did not start: exit code \d+", log)

"""`make demo` as a person meets it, and what the README of examples/ says of its agent."""

import asyncio
import json
import os
import re
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from tests.tools.running_tool import (
    DEADLINE,
    START_SECONDS,
    a_child_of,
    bearer,
    children_of,
    identity,
    pasted,
    port_of,
    running_tool,
    the_line,
)
from tools.child_process import http_status

demo = partial(running_tool, "tools.demo")

pytestmark = pytest.mark.usefixtures("livekit_binary", "agent_python")


class Chat:
    """With the agent, by HTTP alone."""

    def __init__(self, client: httpx.AsyncClient, lines: AsyncIterator[str]) -> None:
        self._client = client
        self._lines = lines
        self.used: list[dict[str, Any]] = []
        """The models, as far as it was told."""

    async def say(self, text: str) -> None:
        options = {"text": text, "agent_timeout": DEADLINE}
        answer = await self._client.post("text", json=options)
        assert answer.status_code == 200, answer.text

    async def until(
        self, name: str, which: Callable[[dict[str, Any]], object] = lambda _: True
    ) -> dict[str, Any]:
        """The next event of that name, of those that `which` is true of."""
        async with asyncio.timeout(DEADLINE):
            async for line in self._lines:
                event: dict[str, Any] = json.loads(line)
                if event["type"] == "agent.session_usage_updated":
                    self.used = event["usage"]["model_usage"]
                if event["type"] == name and which(event):
                    return event
        raise AssertionError(f"no {name}")

    async def answer(self, to: str = "") -> str:
        """The next text that the agent has said, with these words of the user in it."""
        text: str = (await self.until("message", lambda event: to in event["text"]))["text"]
        return text


@asynccontextmanager
async def chat(page: str) -> AsyncIterator[Chat]:
    """As the page whose address is printed: what happens from now on."""
    address = urlsplit(page)
    [token] = parse_qs(address.fragment)["token"]
    wanted = "events?topic=lk.transcription&agent=1&view=messages"
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(
        base_url=f"http://{address.netloc}/rooms/demo/", headers=headers, timeout=DEADLINE
    ) as client:
        lines = {"Accept": "application/x-ndjson"}
        async with client.stream("GET", wanted, headers=lines) as events:
            assert events.status_code == 200
            yield Chat(client, events.aiter_lines())


async def test_its_agent_answers_uses_tools_and_fails_on_demand_and_sigterm_ends_everything(
    unused_port: int,
) -> None:
    async with demo(GATEWAY_PORT=str(unused_port)) as running:
        text = await running.ready()
        page, follow = the_line(text, "http"), the_line(text, "curl -N")
        assert page.endswith("&agent=1")
        assert identity(bearer(follow)) == "alice"
        children = await children_of(running.process.pid)
        async with chat(page) as alice, pasted(follow) as followed:
            assert (await alice.answer()).startswith("Hello! I am a script")
            async with asyncio.timeout(DEADLINE):
                await followed.readuntil(b"event: gateway.opened\n")

            await alice.say("What is the weather in Rome?")
            started = await alice.until("agent.tool_execution_updated")
            call = started["update"]["function_call"]
            assert (call["name"], json.loads(call["arguments"])) == ("weather", {"city": "Rome"})
            assert await alice.answer() == "It is sunny in Rome, with 21 °C. "
            async with asyncio.timeout(DEADLINE):
                await followed.readuntil(b"event: agent.tool_execution_updated\n")

            await alice.say("cancel the table")
            ended = await alice.until("agent.tool_execution_updated", _is_ended)
            assert ended["update"]["status"] == "error"
            assert await alice.answer() == "No table is booked. "
            await alice.say("book a table for 4")
            assert await alice.answer() == "I am asking the restaurant, one moment. "
            assert await alice.answer() == "The table for 4 is booked. "

            await alice.say("break")
            lost = await alice.until("agent.availability_changed")
            assert (lost["model"], lost["available"]) == ("first", False)
            assert "I am second" in await alice.answer("You said: break")
            await alice.say("recover")
            back = await alice.until("agent.availability_changed")
            assert (back["model"], back["available"]) == ("first", True)
            await alice.say("Who is there?")
            assert "I am first" in await alice.answer("Who is there?")
            tokens = {one["model"]: one["output_tokens"] for one in alice.used}
            assert tokens.keys() == {"first", "second"}
            assert all(tokens.values())

            await alice.say("fail")
            error = (await alice.until("agent.error"))["error"]
            assert error["recoverable"] is False
            assert error["message"].startswith("all LLMs failed")
            await alice.until(
                "agent.availability_changed", lambda of: of["available"] and of["model"] == "first"
            )
            await alice.say("Are you back?")
            await alice.answer("You said: Are you back?")

            ask = the_line(text, f"curl -N http://127.0.0.1:{unused_port}/rooms/demo/agent/turns")
            async with asyncio.timeout(DEADLINE), pasted(ask) as answered:
                *_, completed = (await answered.read()).decode().split("event: ")
            event, _, data = completed.partition("\ndata: ")
            turn = json.loads(data)
            assert (event, turn["outcome"]) == ("agent.turn_completed", "completed")
            assert turn["text"].strip() == "It is sunny in Rome, with 21 °C."

            running.process.send_signal(signal.SIGTERM)
            await alice.until("agent.close")
            await alice.until("gateway.closing")
        exit_code, _ = await running.end()
    assert exit_code == 0
    assert len(children) == 6  # LiveKit, the gateway, the agent, and a keeper for each
    for pid in children:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert http_status("127.0.0.1", unused_port, "/livez") is None
    assert not _agent_log(text).exists()


def _is_ended(event: dict[str, Any]) -> bool:
    return bool(event["update"]["type"] == "tool_call_ended")


def _agent_log(text: str) -> Path:
    found = re.search(r"its log is (.+)\.$", text, re.MULTILINE)
    assert found is not None
    return Path(found[1])


async def test_when_the_agent_ends_by_itself_all_end_and_its_log_is_told(unused_port: int) -> None:
    async with demo(GATEWAY_PORT=str(unused_port)) as running:
        text = await running.ready()
        os.kill(await a_child_of(running.process.pid, "--dev"), signal.SIGKILL)
        exit_code, log = await running.end()
    assert exit_code == 1
    told = re.search(
        r"The agent ended by itself \(exit code -9\)\. The end of its log, (.+):\n(.+)", log
    )
    assert told is not None
    assert Path(told[1]) == _agent_log(text)
    assert told[2] in Path(told[1]).read_text()
    Path(told[1]).unlink()
    assert http_status("127.0.0.1", unused_port, "/livez") is None
    assert http_status("127.0.0.1", port_of(text, "LiveKit at ws://127.0.0.1"), "/") is None


async def test_an_environment_that_cannot_be_made_is_told_before_anything_starts(
    tmp_path: Path,
) -> None:
    async with demo(XDG_CACHE_HOME=str(tmp_path), PIP_NO_INDEX="1") as running:
        exit_code, log = await running.end(within=START_SECONDS)
    assert exit_code == 1
    first, told, *_ = log.splitlines()
    assert first == (
        "Installing LiveKit Agents into an environment of its own (about a minute, once)"
    )
    assert told.startswith(
        "LiveKit Agents is not here, and the demo needs it: pip could not install"
    )
    assert "No matching distribution found" in log
    assert log.endswith("`make run` does without: a LiveKit server, the gateway, and no agent.\n")
    assert list((tmp_path / "livekit-sse-gateway").iterdir()) == []

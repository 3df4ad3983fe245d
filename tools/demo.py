"""`make demo`: what `make run` starts, and the agent of examples/, which comes into the room.

The agent is ended first: what it says at its close is still read.
"""

import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn
from urllib.parse import quote

from tools.agent_environment import ROOT, AgentEnvironmentFailed, agent_environ, agent_python
from tools.child_process import ChildEnded, ChildNotReady, ChildProcess, last_lines
from tools.stack import (
    ROOM,
    RunError,
    Stack,
    curl,
    log_file,
    make_token,
    report,
    run_until_stopped,
    start_stack,
    watch,
)

AGENT = ROOT / "examples" / "agent.py"

REGISTERED = b"registered worker"
"""LiveKit Agents' own words, in its log. Whoever joins before that joins a room without an agent."""

READY_SECONDS = 60.0
"""LiveKit Agents is imported within two seconds; the first time, from a cold disk, in many more."""

STOP_SECONDS = 10.0
"""A session closes within a second; a model that is asked at that moment may need more."""

PROXIES = ("HTTP_PROXY", "HTTPS_PROXY")
"""LiveKit Agents would look for a LiveKit server of this machine behind them."""


class AgentFailed(RunError):
    """The agent ended, or never got ready; the text has the end of its log."""


@dataclass(frozen=True, slots=True)
class Agent:
    child: ChildProcess
    log: Path

    def check(self) -> None:
        """Raise when it has ended by itself."""
        exit_code = self.child.poll()
        if exit_code is not None:
            raise self.failed(f"ended by itself (exit code {exit_code})")

    def failed(self, what: str) -> AgentFailed:
        return AgentFailed(
            f"The agent {what}. The end of its log, {self.log}:\n{last_lines(self.log)}"
        )


def main() -> int:
    return run_until_stopped(_run)


def _run(started: ExitStack, environ: Mapping[str, str]) -> NoReturn:
    python = _agent_python()
    stack = start_stack(started, environ)
    agent = _start_agent(started, python, stack, environ)
    print(_what_to_try(stack, agent), flush=True)
    watch(stack.check, agent.check)


def _agent_python() -> Path:
    try:
        return agent_python(report)
    except AgentEnvironmentFailed as error:
        raise RunError(
            f"LiveKit Agents is not here, and the demo needs it: {error}\n"
            "`make run` does without: a LiveKit server, the gateway, and no agent."
        ) from error


def _start_agent(
    started: ExitStack, python: Path, stack: Stack, environ: Mapping[str, str]
) -> Agent:
    livekit = stack.livekit
    env = agent_environ(
        environ,
        LIVEKIT_URL=livekit.url,
        LIVEKIT_API_KEY=livekit.api_key,
        LIVEKIT_API_SECRET=livekit.api_secret,
    )
    if livekit.server is not None:
        env = {name: value for name, value in env.items() if name not in PROXIES}
    log = log_file(started, "agent", AgentFailed)
    with log.open("wb") as output:
        command: list[str | Path] = [python, "-u", "-m", "livekit.agents", "start", AGENT, "--dev"]
        agent = Agent(ChildProcess(command, env=env, output=output), log)
    started.callback(agent.child.stop, within=STOP_SECONDS)
    try:
        agent.child.wait_until(lambda: REGISTERED in log.read_bytes(), within=READY_SECONDS)
    except (ChildEnded, ChildNotReady) as error:
        raise agent.failed(f"did not start: {error}") from error
    return agent


def _what_to_try(stack: Stack, agent: Agent) -> str:
    """One identity: an agent listens to the one who came first, and all that is here is to be heard."""
    token = make_token(stack.gateway, "alice")
    agent_address = f"{stack.room_address}/agent"
    text = ("-H", "Content-Type: text/plain", "-d", "What is the weather in Rome?")
    commands = {
        "to see what the agent does": curl(token, "-N", f"{agent_address}/events"),
        "to ask it, and read the answer": curl(token, "-N", f"{agent_address}/turns", *text),
    }
    return f"""
{stack}
The agent is {AGENT.relative_to(ROOT)}; its log is {agent.log}.

In a browser, to chat with it and see what it does (room {ROOM}, as alice):
  {stack.gateway.address}/#token={quote(token)}&agent=1

{"".join(_in_a_terminal(*each) for each in commands.items())}\
It knows some words: weather in Paris, book a table for 4, cancel the table.
Its models fail on demand: break, recover (the first one), fail (both).

Ctrl-C ends everything.
"""


def _in_a_terminal(purpose: str, command: str) -> str:
    return f"In a terminal, {purpose} (as alice too):\n  {command}\n\n"


if __name__ == "__main__":
    sys.exit(main())

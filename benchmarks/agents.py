"""`python -m benchmarks.agents`: agent sessions by way of the gateway, beside LiveKit's SDK.

The agents are sessions of LiveKit Agents, whose models do as they are told, in processes of their own. Names
of sections as arguments measure those alone.
"""

import asyncio
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import machine
from benchmarks.agent_clients import AGENT, Answered, Heard, echo, script
from benchmarks.runner import markdown, run
from benchmarks.stage import Stage, Worker, report, working
from benchmarks.ways import percentile
from tests.agent.played_session import SESSION_PROGRAM, PlayedSession, played_session
from tests.agent.running_agent import AgentProgram
from tools.agent_environment import agent_python

PROGRAMS = 4

KINDS = {"with the helper": True, "without": False}
"""Agents that tell of their sessions in full, and by the framework's own messages alone."""

WARM_UP = 10
"""Turns before the first that counts."""

EVENT_TURNS = 60
"""Some ten events each."""

TURN_PAUSE = 0.05
"""Seconds between two turns: what one leaves behind is done by then."""

SETTLED = 0.5
"""Seconds after the last turn; what has not arrived by then is lost."""

WARM_TURNS = 120

ANNOUNCED = 4.0
"""Seconds within which LiveKit tells an agent of a participant that has come."""

COLD_TURNS = 100
SDK_COLD_TURNS = 10
AT_ONCE = 10

COLD_SETTLED = 30.0
"""Seconds after the agents came: until then each room that is new costs its agent's process some 15 ms a
second."""

MANY_AGENTS = 20
MANY_TURNS = 20

OF_HELPER = {"speech_created", "speech_finished", "metrics_collected", "close"}
"""What agents without the helper do not tell."""

GOAL_EVENT = 2.0
GOAL_FIRST_PIECE = 10.0
GOAL_COLD = 400.0
"""Milliseconds, at p50."""

RUN_SECONDS = 420.0
"""It takes about 300."""


# What an agent tells


async def events(stage: Stage, programs: Sequence[AgentProgram]) -> str:
    rows = []
    verdicts = []
    for kind, helper in KINDS.items():
        report(f"Events of an agent {kind}")
        sse, sdk = await _events(stage, programs[0], kind, helper)
        late = _later(sse, sdk)
        percentiles = (f"{percentile(late, percent):+.2f}" for percent in (1, 50, 99))
        rows.append((kind, *percentiles, f"{len(late):,} of {len(sdk):,}"))
        verdicts.append(
            f"- {kind}: p50 {percentile(late, 50):+.2f} ms (goal: at most {GOAL_EVENT:+g})"
        )
    header = ("an agent", "p1 ms", "p50 ms", "p99 ms", "events of both")
    return (
        "An event of an agent that answers turn after turn, with a tool called in each second one: how much later"
        " it is there as SSE than with a participant by the SDK in the same room:\n\n"
        + markdown(header, rows)
        + "\n\n"
        + "\n".join(verdicts)
    )


async def _events(
    stage: Stage, program: AgentProgram, kind: str, helper: bool
) -> tuple[list[Heard], list[Heard]]:
    room = f"events {kind}".replace(" ", "-")
    async with (
        working("http_agent_events", stage.place(room, "reader")) as sse,
        working("sdk_agent_events", stage.place(room, "participant")) as sdk,
        played_session(program, stage.livekit, room, AGENT, helper=helper) as session,
    ):
        both: list[list[Heard]] = []
        for turns in (WARM_UP, EVENT_TURNS):
            await session.script("llm", *script(turns))
            for turn in range(turns):
                session.seen.clear()
                await session.tell("ask", content=[f"question {turn}"])
                await session.listens()
                await asyncio.sleep(TURN_PAUSE)
            await asyncio.sleep(SETTLED)
            both += [[Heard(**each) for each in await worker.do("take")] for worker in (sse, sdk)]
    *_, ours, sdks = both
    return ours, sdks


def _later(sse: Iterable[Heard], sdk: Iterable[Heard]) -> list[int]:
    """Microseconds by which each event that both have was later as SSE."""
    at = {heard.digest: heard.at for heard in sdk}
    return [(heard.at - at[heard.digest]) // 1000 for heard in sse if heard.digest in at]


# Turns in rooms where everybody is there


async def turns(stage: Stage, programs: Sequence[AgentProgram]) -> str:
    named: dict[str, list[Answered]] = {}
    verdicts = []
    for kind, helper in KINDS.items():
        report(f"Turns of agents {kind}")
        asked = await _turns(stage, programs[0], kind, helper)
        named |= {f"{way}, {kind}": answers for way, answers in asked.items()}
        by_post, by_sdk = (percentile(_first(asked[way]), 50) for way in ("POST", "SDK"))
        verdicts.append(
            f"- {kind}: first piece by POST p50 {by_post - by_sdk:+.2f} ms beyond the SDK's"
            f" (goal: at most {GOAL_FIRST_PIECE:+g})"
        )
    return (
        "A text to an agent, until the first piece of its answer and until the end of it, in rooms where"
        " everybody is there; both ways in turns:\n\n"
        + _answer_table(named)
        + "\n\n"
        + "\n".join(verdicts)
    )


async def _turns(
    stage: Stage, program: AgentProgram, kind: str, helper: bool
) -> dict[str, list[Answered]]:
    roles = {"POST": "http_asker", "SDK": "sdk_asker"}
    # An agent listens to one participant: each way has an agent of its own, in the same process.
    rooms = {way: f"turns {kind} {way}".replace(" ", "-") for way in roles}
    async with AsyncExitStack() as stack:
        askers: dict[str, Worker] = {}
        sessions: dict[str, PlayedSession] = {}
        for way, room in rooms.items():
            askers[way] = await stack.enter_async_context(
                working(roles[way], stage.place(room, "caller"))
            )
            sessions[way] = await stack.enter_async_context(
                played_session(program, stage.livekit, room, AGENT, helper=helper)
            )
        asked: dict[str, list[Answered]] = {way: [] for way in roles}
        # A POST announces who it is from; a participant by the SDK does not.
        await asyncio.sleep(ANNOUNCED)
        for turn in range(WARM_UP + WARM_TURNS):
            # Each is first as often as the other.
            for way in sorted(roles, reverse=bool(turn % 2)):
                sessions[way].seen.clear()
                text = f"question {turn}"
                answered = Answered(**await askers[way].do("ask", text, echo(text)))
                if answered.first is not None:
                    await sessions[way].listens()
                await asyncio.sleep(TURN_PAUSE)
                if turn >= WARM_UP:
                    asked[way].append(answered)
    return asked


# Turns of those who come


async def cold(stage: Stage, programs: Sequence[AgentProgram]) -> str:
    by_post: list[Answered] = []
    by_sdk: list[Answered] = []
    joins: list[float] = []
    async with (
        _agents(stage, programs, "cold", COLD_TURNS + SDK_COLD_TURNS),
        working("cold_askers", stage.place("cold", "unused")) as askers,
    ):
        report(f"{COLD_TURNS} turns, one after the other")
        for number in range(COLD_TURNS):
            by_post.append(Answered(**await askers.do("turn", number)))
            sdk, other = divmod(number, COLD_TURNS // SDK_COLD_TURNS)
            if not other:
                joined, answered = await askers.do("sdk_turn", COLD_TURNS + sdk)
                joins.append(joined)
                by_sdk.append(Answered(**answered))
    async with (
        _agents(stage, programs, "cold-at-once", COLD_TURNS),
        working("cold_askers", stage.place("cold-at-once", "unused")) as askers,
    ):
        report(f"{COLD_TURNS} turns, {AT_ONCE} at a time")
        started, before = time.monotonic(), machine.cpu_seconds(stage.pids)
        at_once = [Answered(**told) for told in await askers.do("turns", COLD_TURNS, AT_ONCE)]
        took, after = time.monotonic() - started, machine.cpu_seconds(stage.pids)
    named = {
        "POST": by_post,
        f"POST, {AT_ONCE} at a time": at_once,
        "SDK: joins, and sends at once": by_sdk,
    }
    p50 = percentile(_first(by_post), 50)
    cpu = ", ".join(
        f"{name} {(after[name] - before[name]) / COLD_TURNS * 1e3:.0f} ms" for name in before
    )
    return (
        "The first text of somebody who is not in the room, to an agent that waits there, in a room of its own"
        f" each time:\n\n{_answer_table(named)}\n\n"
        f"- one after the other: {_answered(by_post)} answered, first piece p50 {p50:.0f} ms (goal: all, under"
        f" {GOAL_COLD:g}); a join by the SDK alone: p50 {median(joins) * 1e3:.0f} ms\n"
        f"- {AT_ONCE} at a time: a turn each {took / COLD_TURNS * 1e3:.0f} ms; processor time of a turn: {cpu}"
    )


@asynccontextmanager
async def _agents(
    stage: Stage, programs: Sequence[AgentProgram], name: str, count: int
) -> AsyncIterator[None]:
    report(f"{count} agents come, and wait")
    async with _playing(stage, programs, [f"{name}-{number}" for number in range(count)]):
        await asyncio.sleep(COLD_SETTLED)
        yield


# Many agents at once


async def many(stage: Stage, programs: Sequence[AgentProgram]) -> str:
    rooms = [f"many-{number}" for number in range(MANY_AGENTS)]
    helped = [number // PROGRAMS % 2 == 0 for number in range(MANY_AGENTS)]
    async with working("conversations", stage.place("many", "unused")) as conversations:
        await conversations.do("open", MANY_AGENTS)
        async with _playing(stage, programs, rooms, helped) as sessions:
            for session in sessions:
                await session.script("llm", *script(MANY_TURNS))
                session.seen.clear()
            report(f"{MANY_AGENTS} agents, {MANY_TURNS} turns each")
            started = time.monotonic()
            answers = [Answered(**told) for told in await conversations.do("converse", MANY_TURNS)]
            took = time.monotonic() - started
        kept = [
            _kept(session, helper, await conversations.do("told", number))
            for number, (session, helper) in enumerate(zip(sessions, helped, strict=True))
        ]
    rows = []
    for kind, helper in KINDS.items():
        mine = [each for each, is_helped in zip(kept, helped, strict=True) if is_helped == helper]
        rows.append(
            (kind, str(len(mine)), *(f"{sum(column):,}" for column in zip(*mine, strict=True)))
        )
    total = [sum(column) for column in zip(*kept, strict=True)]
    return (
        f"{MANY_AGENTS} agents in {MANY_AGENTS} rooms, of {PROGRAMS} processes, that answer {MANY_TURNS} texts"
        " each, all at once, with a tool called in each second turn: what handlers inside the agents saw, and"
        " what one event stream of each room has told:\n\n"
        + markdown(("agents", "agents of them", "seen", "lost", "doubled", "reordered"), rows)
        + "\n\n"
        + _answer_table({"POST": answers})
        + f"\n\n- in {took:.1f} s; of {total[0]:,} events {total[1]} lost, {total[2]} doubled, {total[3]} reordered"
        " (goal: none)"
    )


def _kept(
    session: PlayedSession, helper: bool, told: Sequence[dict[str, Any]]
) -> tuple[int, int, int, int]:
    """Of one agent: events that its handlers saw, and how many of them were lost, came twice, or in another
    order."""
    seen = [
        _what(one.kind, one.members) for one in session.seen if helper or one.kind not in OF_HELPER
    ]
    heard = [_what(each["type"].removeprefix("agent."), each) for each in told]
    # How the session began is not of the turns, nor is its end, which is told by whatever way.
    heard = heard[heard.index(seen[0]) :] if seen[0] in heard else heard
    if not helper:
        heard = heard[:-1]
    lost, doubled = Counter(seen) - Counter(heard), Counter(heard) - Counter(seen)
    common = [
        [
            one
            for one in events
            if not one.startswith("speech_finished") and one not in lost | doubled
        ]
        for events in (seen, heard)
    ]
    reordered = sum(one != other for one, other in zip(*common, strict=False))
    return len(seen), lost.total(), doubled.total(), reordered


def _what(kind: str, members: Mapping[str, Any]) -> str:
    """What both sides say of an event, whoever tells it."""
    match kind:
        case "conversation_item_added":
            which = members["item"]["id"]
        case "agent_state_changed" | "user_state_changed":
            which = members["old_state"], members["new_state"]
        case "function_tools_executed":
            which = [call["call_id"] for call in members["function_calls"]]
        case "tool_execution_updated":
            update = members["update"]
            which = update["type"], update.get("id") or update["function_call"]["call_id"]
        case "metrics_collected":
            which = members["metrics"]["request_id"]
        case "speech_created" | "speech_finished":
            which = members["speech_id"]
        case _:
            which = ""
    return f"{kind} {which}"


# What all have in common


@asynccontextmanager
async def _playing(
    stage: Stage,
    programs: Sequence[AgentProgram],
    rooms: Sequence[str],
    helped: Sequence[bool] = (),
) -> AsyncIterator[list[PlayedSession]]:
    """An agent that listens in each of the rooms; in each process they come, and go, one after the other."""
    sessions: dict[str, PlayedSession] = {}
    stacks = [AsyncExitStack() for _ in programs]

    async def come(first: int) -> None:
        for number in range(first, len(rooms), len(programs)):
            helper = helped[number] if helped else True
            sessions[rooms[number]] = await stacks[first].enter_async_context(
                played_session(programs[first], stage.livekit, rooms[number], AGENT, helper=helper)
            )

    try:
        await asyncio.gather(*map(come, range(len(programs))))
        yield [sessions[room] for room in rooms]
    finally:
        await asyncio.gather(*(stack.aclose() for stack in stacks))


ANSWER_HEADER = (
    "way",
    "first piece p50 ms",
    "p99 ms",
    "slowest ms",
    "end p50 ms",
    "p99 ms",
    "slowest ms",
    "answered",
)


def _answer_table(named: Mapping[str, Sequence[Answered]]) -> str:
    rows = []
    for way, answers in named.items():
        for problem, count in Counter(each.problem for each in answers if each.problem).items():
            report(f"{way}: {count} not answered: {problem}")
        times = (*_milliseconds(_first(answers)), *_milliseconds(_whole(answers)))
        rows.append((way, *times, _answered(answers)))
    return markdown(ANSWER_HEADER, rows)


def _answered(answers: Sequence[Answered]) -> str:
    return f"{len(_whole(answers))} of {len(answers)}"


def _first(answers: Iterable[Answered]) -> list[int]:
    """Microseconds."""
    return [int(each.first * 1e6) for each in answers if each.first is not None]


def _whole(answers: Iterable[Answered]) -> list[int]:
    return [int(each.whole * 1e6) for each in answers if each.whole is not None]


def _milliseconds(microseconds: Sequence[int]) -> tuple[str, str, str]:
    if not microseconds:
        return "-", "-", "-"
    p50, p99, slowest = (percentile(microseconds, percent) for percent in (50, 99, 100))
    return f"{p50:.2f}", f"{p99:.2f}", f"{slowest:.2f}"


SECTIONS: Mapping[str, Callable[[Stage, Sequence[AgentProgram]], Awaitable[str]]] = {
    "events": events,
    "turns": turns,
    "cold": cold,
    "many": many,
}


async def measure(names: Sequence[str], stage: Stage) -> str:
    python = agent_python(report)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, ExitStack() as stack:
        programs = []
        for number in range(PROGRAMS):
            own = Path(folder, str(number))
            own.mkdir()
            programs.append(stack.enter_context(AgentProgram(python, own, SESSION_PROGRAM)))
        parts = [f"### {TITLES[name]}\n\n{await SECTIONS[name](stage, programs)}" for name in names]
    return "\n\n".join(parts)


TITLES = {
    "events": "An agent's events",
    "turns": "Turns in a warm room",
    "cold": "Cold turns",
    "many": "Many agents",
}


def main(names: Sequence[str]) -> int:
    if unknown := set(names) - set(SECTIONS):
        report(f"No section is called {', '.join(unknown)}; there are {', '.join(SECTIONS)}.")
        return 2
    return run(partial(measure, names or tuple(SECTIONS)), within=RUN_SECONDS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

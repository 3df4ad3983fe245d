"""An agent session of LiveKit Agents that a test plays, with the helper for agents.

Run and steered like program.py. Each connection is one session in a room, or a worker that makes it:
the first line says where and of what it is made, each further one is an order. What handlers inside the agent saw comes back,
by the framework's own serialization where it has one, and `done` after each order.
"""

import asyncio
import json
import logging
import os
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from livekit import rtc
from livekit.agents import (
    Agent,
    AgentServer,
    AgentSession,
    APIConnectOptions,
    JobContext,
    JobExecutorType,
    RunContext,
    function_tool,
    llm,
    stt,
    tts,
)
from livekit.agents.llm import ToolError
from livekit.agents.utils import http_context
from livekit.agents.voice.agent_session import SessionConnectOptions
from livekit.agents.voice.room_io import RoomOptions, TextOutputOptions

from livekit_sse_gateway_agent import report
from tests.agent.bargein_service import bargein_service
from tests.agent.orders import Connection, carry_out, tell
from tests.agent.scripted_models import ScriptedLLM, ScriptedSTT, ScriptedTTS, ToneVAD

SAMPLE_RATE = 48_000

CONNECT = APIConnectOptions(max_retry=1, retry_interval=0.05, timeout=2.0)

RETRY_AT_ONCE = SessionConnectOptions(
    stt_conn_options=CONNECT, llm_conn_options=CONNECT, tts_conn_options=CONNECT
)

SEEN = (
    "agent_state_changed",
    "user_state_changed",
    "user_input_transcribed",
    "user_transcription_timeout",
    "conversation_item_added",
    "agent_false_interruption",
    "overlapping_speech",
    "function_tools_executed",
    "metrics_collected",
    "session_usage_updated",
    "speech_created",
    "tool_execution_updated",
    "error",
    "close",
)
"""All that a session tells its handlers, but for debug messages."""


async def _join(connection: Connection, url: str, token: str, **made_of: Any) -> None:
    """Worker-less: in the room until the connection ends."""
    room = rtc.Room()
    await room.connect(url, token)
    try:
        async with http_context.open():
            played = Played(partial(tell, connection), room, **made_of)
            await played.start()
            async for line in connection[0]:
                await played.obey(**json.loads(line))
                tell(connection, event="done")
            await played.session.aclose()
    finally:
        await room.disconnect()


async def _work(
    connection: Connection, agent_name: str, livekit: dict[str, str], **made_of: Any
) -> None:
    """A worker with one job at a time, whose session is the one that is told what to do."""
    loop = asyncio.get_running_loop()
    played: list[Played] = []

    def from_job(**event: Any) -> None:
        # A job has a thread and a loop of its own.
        loop.call_soon_threadsafe(partial(tell, connection, **event))

    async def job(context: JobContext) -> None:
        played.append(Played(from_job, context.room, **made_of))
        await played[-1].start()

    worker = AgentServer(
        **livekit,
        job_executor_type=JobExecutorType.THREAD,
        host="127.0.0.1",
        port=0,
        num_idle_processes=0,
        load_fnc=lambda: 0.0,
    )
    worker.rtc_session(job, agent_name=agent_name)
    worker.on("worker_registered", lambda *_: tell(connection, event="registered"))
    working = asyncio.create_task(worker.run(devmode=True))
    async for line in connection[0]:
        obeyed = asyncio.run_coroutine_threadsafe(
            played[-1].obey(**json.loads(line)), played[-1].loop
        )
        await asyncio.wrap_future(obeyed)
        tell(connection, event="done")
    await worker.aclose()
    await working


class Played:
    """A session, its models by name, and what it is told to do."""

    def __init__(
        self,
        tell: Callable[..., None],
        room: rtc.Room,
        voice: bool = False,
        fallback: bool = False,
        helper: bool = True,
        wrapped: bool = False,
        timed: bool = False,
        bargein: str | None = None,
        bargein_url: str = "",
        **options: Any,
    ) -> None:
        self._tell, self._room, self._voice, self._helper = tell, room, voice, helper
        self._text = TextOutputOptions(json_format=timed)
        self.models: dict[str, Any] = {}
        self._fallback = fallback
        self.loop = asyncio.get_running_loop()
        if voice:
            options |= {
                "stt": self._model(stt, ScriptedSTT, "stt"),
                "tts": self._model(tts, ScriptedTTS, "tts"),
                "vad": ToneVAD(),
                "turn_handling": {
                    "turn_detection": "vad",
                    "endpointing": {"min_delay": 0.2, "max_delay": 0.6},
                    "interruption": {
                        "mode": "adaptive" if bargein else "vad",
                        "min_duration": 0.3,
                        "false_interruption_timeout": 0.6,
                        "backchannel_boundary": None,
                    },
                },
                "transcription_timeout": 0.8,
                "aec_warmup_duration": None,
            }
            # Read when the session starts.
            os.environ["LIVEKIT_INFERENCE_URL"] = f"{bargein_url}/{bargein}"
        else:
            options |= {"vad": None, "turn_handling": {"turn_detection": None}}
        self._adapters = []
        if wrapped:
            self._adapters = [options["tts"]]
            options["tts"] = tts.StreamAdapter(tts=options["tts"])
        model = self._model(llm, ScriptedLLM, "llm")
        self.session = AgentSession[None](llm=model, conn_options=RETRY_AT_ONCE, **options)
        self._orders: dict[str, Callable[..., Awaitable[None]]] = {
            name: getattr(self, name)
            for name in (
                "script",
                "hold",
                "release",
                "say",
                "ask",
                "interrupt",
                "hand_over",
                "report",
                "flood",
                "close",
                "shut_down",
            )
        }

    def _model(self, kind: Any, scripted: Any, name: str) -> Any:
        """One model, or two of them of which the second takes over."""
        self.models[name] = scripted(name)
        if not self._fallback:
            return self.models[name]
        second = f"{name}-2"
        self.models[second] = scripted(second)
        more = {"max_retry_per_stt": 0, "retry_interval": 0.05} if kind is stt else {}
        if kind is tts:
            more = {"max_retry_per_tts": 0}
        return kind.FallbackAdapter([self.models[name], self.models[second]], **more)

    async def start(self) -> None:
        if self._helper:
            report(self.session, adapters=self._adapters)
        for kind in SEEN:
            rtc.EventEmitter.on(self.session, kind, partial(self._saw, kind))
        options = RoomOptions(
            audio_input=self._voice, audio_output=self._voice, text_output=self._text
        )
        await self.session.start(PlayedAgent("first"), room=self._room, room_options=options)

    async def obey(self, order: str, **options: Any) -> None:
        await self._orders[order](**options)

    # What handlers see

    def _saw(self, kind: str, event: Any) -> None:
        self._tell(event="saw", kind=kind, members=_members(event))
        if kind == "speech_created":
            event.speech_handle.add_done_callback(self._saw_finished)

    def _saw_finished(self, handle: Any) -> None:
        members = {"speech_id": handle.id, "interrupted": handle.interrupted}
        self._tell(event="saw", kind="speech_finished", members=members)

    # What it is told to do

    async def script(self, model: str, steps: list[dict[str, Any]]) -> None:
        """What the next requests to a model do; for `stt`, what is heard now."""
        for step in steps:
            queue = self.models[model].steps
            queue.put_nowait(step) if isinstance(queue, asyncio.Queue) else queue.append(step)

    async def hold(self, model: str = "llm") -> None:
        """The model stops after the first word of an answer."""
        self.models[model].may_go_on.clear()

    async def release(self, model: str = "llm") -> None:
        self.models[model].may_go_on.set()

    async def say(self, text: str) -> None:
        self.session.say(text)

    async def ask(self, content: list[Any]) -> None:
        """A user's message of texts, `{"image": URL}`, `{"frame": [w, h]}`, `{"audio": transcript}`."""
        message = llm.ChatMessage(role="user", content=[_content(part) for part in content])
        self.session.generate_reply(user_input=message)

    async def interrupt(self) -> None:
        await self.session.interrupt(force=True)

    async def hand_over(self, models: list[str]) -> None:
        """To an agent with an LLM of its own, or several of which the later take over."""
        self.models |= {name: ScriptedLLM(name) for name in models}
        own = [self.models[name] for name in models]
        self.session.update_agent(PlayedAgent("second", llm=llm.FallbackAdapter(own)))

    async def report(self) -> None:
        """Once more, or late."""
        report(self.session)

    async def flood(self, events: int) -> None:
        """So many errors at once."""
        for number in range(events):
            error = llm.LLMError(
                timestamp=0.0, label="flood", error=ValueError(str(number)), recoverable=True
            )
            self.session.llm.emit("error", error)

    async def close(self) -> None:
        await self.session.aclose()

    async def shut_down(self) -> None:
        self.session.shutdown()


class PlayedAgent(Agent):
    def __init__(self, name: str, **options: Any) -> None:
        super().__init__(instructions="Do as the script says.", id=name, **options)

    @function_tool
    async def look_up(self, query: str) -> str:
        """Finds what is asked for."""
        return f"found {query}"

    @function_tool
    async def fail(self) -> str:
        """Does not work."""
        raise ToolError("it does not work")

    @function_tool
    async def search_long(self, context: RunContext[None], query: str) -> str:
        """Tells that it is searching, and has found it later."""
        await context.update(f"searching {query}")
        return f"found {query} in the end"


def _content(part: Any) -> Any:
    match part:
        case {"image": url}:
            return llm.ImageContent(image=url)
        case {"frame": [width, height]}:
            pixels = bytearray(4 * width * height)
            kind = rtc.VideoBufferType.RGBA
            return llm.ImageContent(image=rtc.VideoFrame(width, height, kind, pixels))
        case {"audio": transcript}:
            frame = rtc.AudioFrame.create(SAMPLE_RATE, 1, 480)
            return llm.AudioContent(frame=[frame], transcript=transcript)
        case _:
            return part


def _members(event: Any) -> dict[str, Any]:
    left_out: Any = {"type": True}
    if event.type == "overlapping_speech":
        left_out |= {"speech_input": True, "probabilities": True}
    if event.type == "agent_false_interruption":
        left_out |= {"message": True, "extra_instructions": True}
    if event.type == "conversation_item_added":
        left_out |= {"item": {"hash": True}}
        if event.item.type == "message" and not all(isinstance(c, str) for c in event.item.content):
            left_out["item"]["content"] = True
    members: dict[str, Any] = event.model_dump(mode="json", exclude=left_out)
    if event.type in ("error", "close") and event.error is not None:
        # The framework leaves out what happened.
        members["error"]["exception"] = type(event.error.error).__name__
    if event.type == "speech_created":
        members["speech_id"] = event.speech_handle.id
    return members


async def _main(port_file: Path) -> None:
    async with bargein_service() as url:
        # It is asked with a token, like LiveKit Cloud's.
        os.environ |= {"LIVEKIT_INFERENCE_API_KEY": "key", "LIVEKIT_INFERENCE_API_SECRET": "s" * 32}
        join, work = partial(_join, bargein_url=url), partial(_work, bargein_url=url)
        await carry_out(port_file, {"join": join, "work": work})


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    asyncio.run(_main(Path(sys.argv[1])))

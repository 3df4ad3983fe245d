"""Listens to a session, and tells what it hears in debug messages on the session itself."""

import logging
import time
import weakref
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from google.protobuf.struct_pb2 import Struct, Value
from livekit import rtc
from livekit.agents import AgentSession, llm, metrics
from livekit.agents.voice import SpeechHandle
from livekit.protocol.agent_pb import agent_session as agent_pb

from livekit_sse_gateway_agent.members import encoded

MARKER = "livekit-sse-gateway"
VERSION = 1

ONLY_HERE = ("speech_created", "user_transcription_timeout", "close")
"""Events that the framework sends nobody. `metrics_collected` is the fourth; it is sampled."""

FULLER_HERE = (
    "user_input_transcribed",
    "conversation_item_added",
    "function_tools_executed",
    "tool_execution_updated",
    "session_usage_updated",
    "overlapping_speech",
    "error",
)
"""Events that the framework sends with less than they hold."""

AVAILABILITY = {
    "llm": "llm_availability_changed",
    "stt": "stt_availability_changed",
    "tts": "tts_availability_changed",
    "realtime_model": "realtime_availability_changed",
}
"""The events of FallbackAdapters, by what they fall back between."""

VAD_SECONDS = 10.0
"""Metrics of voice detection come every second or so, for as long as there is audio."""

BURST = 300
PER_SECOND = 100
"""So many messages at once, and then a second. The framework sends some hundreds a second, and on close it
gives what is queued 3 seconds: a flood of ours would cost the close itself."""

_logger = logging.getLogger("livekit_sse_gateway_agent")
_reported: "weakref.WeakSet[AgentSession[Any]]" = weakref.WeakSet()


def report(session: "AgentSession[Any]", *, adapters: Iterable[object] = ()) -> None:
    """Tell the room what this session does, from now on; to be called before `session.start(...)`.

    FallbackAdapters are found in the session and in its agents; `adapters` are further ones. It
    never raises, and a second call does nothing.
    """
    try:
        if session in _reported:
            return
        _reported.add(session)
        Reporter(session, list(adapters)).start()
    except Exception:
        _logger.exception("The session is not reported")


class Reporter:
    """One session's. It lives as long as the session, by the callbacks that it registers there."""

    def __init__(self, session: "AgentSession[Any]", adapters: list[object]) -> None:
        self._session = session
        self._adapters = adapters
        self._watched: list[rtc.EventEmitter[str]] = []
        self._allowance = _Allowance()
        self._left_out = 0
        self._next_vad = 0.0
        self._failures: set[str] = set()
        self._changes = {
            kind: partial(self._safely, name, partial(self._availability, kind))
            for kind, name in AVAILABILITY.items()
        }

    def start(self) -> None:
        self._listen("close", self._close)
        self._listen("metrics_collected", self._metrics)
        self._listen("speech_created", self._speech)
        self._listen(
            "user_transcription_timeout", partial(self._tell, "user_transcription_timeout")
        )
        self._listen("conversation_item_added", self._rescan)
        # A reader knows two forms of one event for that by ours coming first.
        if _is_started(self._session):
            _logger.warning("report() after session.start(): some events are told in part only")
        elif not _run_in_order():
            _logger.warning("livekit is old: some events are told in part only")
        else:
            for kind in FULLER_HERE:
                self._listen(kind, partial(self._tell, kind, replaces=kind))
        self._scan()

    # What is heard

    def _listen(self, kind: str, act: Callable[[Any], None]) -> None:
        # As the framework's own callbacks do it: AgentSession.on warns of what is deprecated.
        rtc.EventEmitter.on(self._session, kind, partial(self._safely, kind, act))

    def _safely(self, kind: str, act: Callable[[Any], None], event: Any) -> None:
        """Whatever goes wrong here is no trouble of the agent's, and is logged once a kind."""
        try:
            act(event)
        except Exception:
            if kind not in self._failures:
                self._failures.add(kind)
                _logger.exception("An event %s could not be reported", kind)

    def _metrics(self, event: Any) -> None:
        if isinstance(event.metrics, metrics.VADMetrics):
            if (now := time.monotonic()) < self._next_vad:
                return
            self._next_vad = now + VAD_SECONDS
        self._tell("metrics_collected", event)

    def _speech(self, event: Any) -> None:
        handle: SpeechHandle = event.speech_handle
        handle.add_done_callback(partial(self._safely, "speech_finished", self._finished))
        members = {
            "user_initiated": event.user_initiated,
            "source": event.source,
            "speech_id": handle.id,
            "created_at": event.created_at,
        }
        self._tell("speech_created", members)

    def _finished(self, handle: SpeechHandle) -> None:
        members = {
            "speech_id": handle.id,
            "interrupted": handle.interrupted,
            "created_at": time.time(),
        }
        self._tell("speech_finished", members)

    def _rescan(self, event: Any) -> None:
        if isinstance(event.item, llm.AgentHandoff):
            # The first one is the start: perhaps again, after a close.
            self._scan()
            agent = self._session.current_agent
            self._watch(agent.llm, agent.stt, agent.tts)

    def _close(self, event: Any) -> None:
        try:
            self._say("close", event)
        finally:
            self._unwatch()

    # Whose availability is told

    def _scan(self) -> None:
        session = self._session
        self._watch(*self._adapters, session.llm, session.stt, session.tts)

    def _watch(self, *models: object) -> None:
        """Any model will do: one that falls back to nothing never sends the event."""
        for model in models:
            if isinstance(model, rtc.EventEmitter) and model not in self._watched:
                self._watched.append(model)
                for kind, name in AVAILABILITY.items():
                    rtc.EventEmitter.on(model, name, self._changes[kind])

    def _unwatch(self) -> None:
        """Models may outlive the session, and are not to keep it."""
        for model in self._watched:
            for kind, name in AVAILABILITY.items():
                rtc.EventEmitter.off(model, name, self._changes[kind])
        self._watched.clear()

    def _availability(self, kind: str, event: Any) -> None:
        model = getattr(event, kind)
        members = {
            "kind": kind,
            "label": model.label,
            "model": model.model,
            "provider": model.provider,
            "available": event.available,
            "created_at": time.time(),
        }
        self._tell("availability_changed", members)

    # What is told

    def _tell(self, kind: str, event: object, replaces: str | None = None) -> None:
        if self._allowance.taken():
            self._say(kind, event, replaces)
        else:
            self._left_out += 1

    def _say(self, kind: str, event: object, replaces: str | None = None) -> None:
        members, cut = encoded(event)
        fields = {
            MARKER: Value(number_value=VERSION),
            "type": Value(string_value=kind),
            "members": Value(string_value=members),
        }
        if replaces:
            fields["replaces"] = Value(string_value=replaces)
        if cut:
            fields["cut"] = Value(bool_value=True)
        if self._left_out:
            fields["left_out"] = Value(number_value=self._left_out)
            self._left_out = 0
        message = agent_pb.DebugMessage(payload=Struct(fields=fields))
        rtc.EventEmitter.emit(self._session, "debug_message", message)


class _Allowance:
    """BURST messages, and PER_SECOND more each second."""

    def __init__(self) -> None:
        self._left = float(BURST)
        self._at = time.monotonic()

    def taken(self) -> bool:
        now = time.monotonic()
        self._left = min(BURST, self._left + (now - self._at) * PER_SECOND)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


def _is_started(session: "AgentSession[Any]") -> bool:
    try:
        return session.current_agent is not None
    except RuntimeError:
        return False


def _run_in_order() -> bool:
    """Whether callbacks run as they were registered; older SDKs keep them in a set."""
    emitter = rtc.EventEmitter[str]()
    ran: list[int] = []
    for number in range(16):
        emitter.on("probe", partial(ran.append, number))
    emitter.emit("probe")
    return ran == sorted(ran)

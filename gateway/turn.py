"""What a turn of an agent is: by which rule the answer to one text is told from all else that the agent does.

It begins at the user's item that is the text. It ends when the agent listens again, with no tool running and
no deferred reply to come; with the helper on its side, when the speeches of the turn are done. Nothing here waits: events go
in as the log has them, in the order in which it has them, and `due` says when to look again.
"""

import json
import math
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from gateway.transcripts import Folded

ACCEPTED_WITHIN = 10.0
"""Seconds of an agent that has nothing else to do; it takes a text within some 30 ms of hearing it."""

QUIET = 3.0
"""Seconds for which an agent listens after which nothing more is expected of it: what was to come got lost,
or is never told (a tool's update that is not to be voiced)."""

STREAMS_WITHIN = 0.15
"""Seconds for the text of an answer, which goes another way, once the agent has said that it is done."""

MOST_HELD = 1024 * 1024
"""Bytes of events that are held until it is known whether the text is accepted. What is older is not shown."""

HELD_EACH = 1_024
"""What an event takes beside its bytes once it is read, a short one several times as much as these."""

MOST_KEPT = 256 * 1024
"""Characters of text, tool calls and errors that are told together at the end, and remembered with a key."""

KEPT_EACH = 100
"""Characters that a message, a call or an error takes beside its own: an agent may tell any number of empty ones."""

MOST_AT_ONCE = 1_000
"""Streams, tools, replies and speeches of a turn that are known each; agents have a few."""

ID_CHARACTERS = 256
"""Of an id, by which it is told from others; LiveKit Agents' have some twenty."""

Object = Mapping[str, Any]
"""Of JSON."""


class Outcome(StrEnum):
    COMPLETED = "completed"
    INTERRUPTED = "interrupted"
    """The user, or another text, cut the agent short."""
    SUPERSEDED = "superseded"
    """The agent has turned to something else that the user said."""
    FAILED = "failed"
    """By an error that the agent did not recover from; what it said so far is there."""
    NOT_ACCEPTED = "not_accepted"
    """The text is none of the conversation: the agent listens to somebody else, or refused it."""
    DID_NOT_ANSWER = "agent_did_not_answer"
    """It took the text, and had nothing to say; or it is one that does not tell, and did nothing."""
    CLOSED = "agent_closed"
    LEFT = "agent_left"
    TIMED_OUT = "timed_out"


BUSY = ("thinking", "speaking")

_CUT_TO = (256, 2_048, 16_384)
"""Characters of a text of which the helper tells the beginning alone, `…` as the last one."""


class Turn:
    def __init__(
        self, agent: str, text: str, state: str | None, tells: bool, *, now: float, limit: float
    ) -> None:
        """`state` is that of the agent when the text was sent, at `now`, and `tells`, whether it is known to tell
        what it does; `limit`: when it is over in any case."""
        self.agent = agent
        self.outcome: Outcome | None = None
        self.has_begun = False
        self._text = text.strip()
        self._limit = limit
        self._state = state
        self._idle_since = now
        # Until it begins.
        self._held: list[tuple[Object, bytes]] = []
        self._held_bytes = 0
        self._tells = tells
        # From then on.
        self._item_id: str | None = None
        self._from_ms = 0
        self._until_ms = math.inf
        self._was_busy = False
        self._is_paused = False
        self._listens_since = now
        self._rests_since: float | None = None
        self._streams: dict[str, Folded] = {}
        self._open: set[str] = set()
        self._speeches: set[str] = set()
        self._has_speeches = False
        self._running: set[str] = set()
        self._replies: set[str] = set()
        self._returned: set[str] = set()
        # What is told at the end.
        self._messages: list[str] = []
        self._was_interrupted = False
        self._calls: dict[str, dict[str, Any]] = {}
        self._errors: list[dict[str, Any]] = []
        self._has_failed = False
        self._usage: dict[tuple[str, ...], dict[str, Any]] | None = None
        self._left = MOST_KEPT

    def feed(self, event: Object, frame: bytes, now: float) -> list[bytes]:
        """The next event of the log, and how it is sent; what of those so far is of this turn, once that is
        known."""
        if self.outcome is not None:
            return []
        if event.get("participant_identity", self.agent) != self.agent:
            return []
        if self.has_begun:
            return [frame] if self._take(event, now) else []
        self._held.append((event, frame))
        self._held_bytes += len(frame) + HELD_EACH
        while self._held_bytes > MOST_HELD:
            self._held_bytes -= len(self._held.pop(0)[1]) + HELD_EACH
        self._await_beginning(event, now)
        if not self.has_begun:
            return []
        held, self._held = self._held[:-1], []
        over = {
            _id(earlier.get("speech_id"))
            for earlier, _ in held
            if earlier["type"] == "agent.speech_finished"
        }
        return [*(each for earlier, each in held if self._take_early(earlier, over, now)), frame]

    @property
    def is_over(self) -> bool:
        return self.outcome is not None

    def due(self) -> float:
        """When to `look`, if nothing comes before."""
        if not self.has_begun:
            accepted = self._limit if self._state in BUSY else self._idle_since + ACCEPTED_WITHIN
            return min(self._limit, accepted)
        times = [self._limit]
        if self._rests_since is not None:
            times.append(self._rests_since + STREAMS_WITHIN)
        elif self._state not in BUSY and not self._running:
            times.append(self._listens_since + (QUIET if self._was_busy else ACCEPTED_WITHIN))
        return min(times)

    def look(self, now: float) -> None:
        """Ends it where what was waited for has not come."""
        if self.outcome is not None or now < self.due():
            return
        if self._rests_since is not None or (self.has_begun and now < self._limit):
            self._end()
        elif now >= self._limit:
            self.outcome = Outcome.TIMED_OUT
        else:
            self.outcome = Outcome.NOT_ACCEPTED if self._tells else Outcome.DID_NOT_ANSWER

    def result(self) -> dict[str, Any]:
        """What came of it, of which each part is null where nobody has told."""
        streams = [stream.text.strip() for stream in self._streams.values()]
        messages = [_whole(message, streams) for message in self._messages]
        return {
            "outcome": self.outcome,
            "text": "\n".join(filter(None, messages or streams)),
            "tool_calls": list(self._calls.values()),
            "usage": None if self._usage is None else {"model_usage": list(self._usage.values())},
            "errors": self._errors,
            "truncated": self._left < 0 or any(map(_is_cut, messages)),
        }

    # Its beginning

    def _await_beginning(self, event: Object, now: float) -> None:
        if event["type"].startswith("agent.") and event["created_at_is"] is not None:
            self._tells = True
        match event["type"]:
            case "agent.conversation_item_added":
                item = _object(event.get("item"))
                if _role(item) == "user" and self._is_text(_text(item)):
                    created_at = _number(item.get("created_at")) or _number(event["created_at"])
                    self._begin(int(created_at * 1000), now)
                    self._item_id = _id(item.get("id"))
            case "agent.agent_state_changed":
                before, self._state = self._state, event["new_state"]
                self._idle_since = now
                if before in BUSY and self._state not in BUSY:
                    self._forget_done()
                if event["created_at_is"] is None and self._state in BUSY:
                    # Of an agent that tells nothing else there is no better sign.
                    self._begin(0, now)
                    self._was_busy = True
            case "agent.close":
                self._close(event)
            case _:
                pass

    def _forget_done(self) -> None:
        """What the agent did until it rested was of another turn: its tools and errors are none of this one.

        Of streams, their times tell; a speech may have been created for this one.
        """
        self._held = [
            (event, frame)
            for event, frame in self._held
            if not event["type"].startswith("agent.") or event["type"].startswith("agent.speech_")
        ]
        self._held_bytes = sum(len(frame) + HELD_EACH for _, frame in self._held)

    def _begin(self, from_ms: int, now: float) -> None:
        self.has_begun = True
        self._from_ms = from_ms
        self._listens_since = now

    def _is_text(self, said: str) -> bool:
        if _is_cut(said) and self._text.startswith(said[:-1].strip()):
            return True
        return said.strip() == self._text

    def _take_early(self, event: Object, over: set[str], now: float) -> bool:
        """Of what came before it was known that the text is accepted: words and errors may be of this turn
        already, and its speech has begun, which is none of those that are `over`; all else is of what the agent
        did before."""
        match event["type"]:
            case "agent.speech_created":
                is_early = _id(event.get("speech_id")) not in over
            case "agent.error" | "agent.availability_changed":
                is_early = True
            case other:
                is_early = other.startswith("stream.")
        return is_early and self._take(event, now)

    # What comes of it

    def _take(self, event: Object, now: float) -> bool:
        shown = True
        match event["type"]:
            case "stream.opened":
                shown = self._opened(event)
            case "stream.chunk":
                stream = self._streams.get(event["stream_id"])
                shown = stream is not None
                if stream is not None and self._keep(len(event["text"])):
                    stream.add(event["text"], event["index"])
            case "stream.closed":
                stream = self._streams.get(event["stream_id"])
                shown = stream is not None
                if stream is not None:
                    stream.end(complete=event["complete"])
                self._open.discard(event["stream_id"])
            case "agent.agent_state_changed":
                self._changed(event, now)
            case "agent.conversation_item_added":
                self._said(_object(event.get("item")))
            case "agent.speech_created":
                self._has_speeches = True
                _note(self._speeches, event.get("speech_id"))
            case "agent.speech_finished":
                speech = _id(event.get("speech_id"))
                if speech in self._speeches:
                    self._speeches.discard(speech)
                    self._was_interrupted |= bool(event.get("interrupted"))
            case "agent.tool_execution_updated":
                self._worked(_object(event.get("update")))
            case "agent.function_tools_executed":
                for pair in event["zipped"]:
                    self._called(
                        _object(pair["function_call"]), _object(pair["function_call_output"])
                    )
            case "agent.metrics_collected":
                self._used(_object(event.get("metrics")))
            case "agent.error":
                self._erred(event)
            case "agent.close":
                self._close(event)
            case _:
                pass  # it is shown, and decides nothing
        if self.outcome is None:
            self._settle(now)
        return shown

    def _opened(self, event: Object) -> bool:
        at = event["timestamp"]
        if at < self._from_ms or (self._rests_since is not None and at > self._until_ms):
            return False
        if len(self._streams) >= MOST_AT_ONCE:
            return False
        self._streams[event["stream_id"]] = Folded()
        self._open.add(event["stream_id"])
        return True

    def _changed(self, event: Object, now: float) -> None:
        before, self._state = self._state, event["new_state"]
        if self._state in BUSY:
            self._was_busy = True
            # Words may follow a pause; each time it needs to have said something.
            self._is_paused = self._state == "speaking"
        elif before in BUSY:
            self._listens_since = now
            created_at = event["created_at"]
            self._until_ms = math.inf if created_at is None else created_at * 1000
            if event["created_at_is"] is None:
                self._is_paused = False  # it tells of no items

    def _said(self, item: Object) -> None:
        role = _role(item)
        if role == "user" and _id(item.get("id")) != self._item_id:
            self.outcome = Outcome.SUPERSEDED
        elif role == "assistant":
            self._is_paused = False
            self._was_interrupted = bool(item.get("interrupted"))
            text = _text(item)
            if self._keep(KEPT_EACH + len(text)):
                self._messages.append(text)

    def _worked(self, update: Object) -> None:
        call_id = _id(update.get("call_id"))
        match update.get("type"):
            case "tool_call_started":
                call = _object(update.get("function_call"))
                _note(self._running, call.get("call_id"))
                self._called(call, {})
            case "tool_call_updated":
                self._expect_reply(update)
            case "tool_call_ended":
                self._running.discard(call_id)
                message = update.get("message")
                if message is not None:
                    self._expect_reply(update)
                    self._return(call_id, message, update.get("status") == "error")
                    _note(self._returned, call_id)
            case "tool_reply_updated" if update.get("status") != "scheduled":
                self._replies.difference_update(map(_id, _list(update.get("update_ids"))))
            case _:
                pass  # newer than we are

    def _expect_reply(self, update: Object) -> None:
        # By its id it is told from what the next answer of the model voices anyway.
        if update.get("id") != update.get("call_id") and not update.get("silent"):
            _note(self._replies, update.get("id"))

    def _called(self, call: Object, output: Object) -> None:
        call_id = _id((call or output).get("call_id"))
        if call_id not in self._calls:
            name, arguments = _string(call.get("name")), _string(call.get("arguments"))
            if not self._keep(KEPT_EACH + _size(call_id, name, arguments)):
                return
            self._calls[call_id] = {
                "call_id": call_id,
                "name": name,
                "arguments": arguments,
                "output": None,
                "is_error": None,
            }
        if output and call_id not in self._returned:
            # That of a tool that goes on is what the model was told meanwhile.
            self._return(call_id, output.get("output"), output.get("is_error"))

    def _return(self, call_id: str, output: object, is_error: object) -> None:
        call = self._calls.get(call_id)
        if call is not None and call["output"] != output and self._keep(_size(output)):
            call["output"] = output
            call["is_error"] = is_error if isinstance(is_error, bool) else None

    def _used(self, metrics: Object) -> None:
        kind, names = _USAGE.get(str(metrics.get("type")), ("", {}))
        if not kind:
            return
        by = _object(metrics.get("metadata"))
        of = (kind, str(by.get("model_provider") or ""), str(by.get("model_name") or ""))
        self._usage = self._usage or {}
        if of not in self._usage:
            if not self._keep(KEPT_EACH + _size(*of)):
                return
            self._usage[of] = dict(zip(("type", "provider", "model"), of, strict=True))
        used = self._usage[of]
        for given, name in names.items():
            used[name] = used.get(name, 0) + _number(metrics.get(given))

    def _erred(self, event: Object) -> None:
        error = _object(event.get("error"))
        # What was said is typed: an agent that cannot hear may answer it all the same.
        if error.get("recoverable") is False and error.get("type") != "stt_error":
            self._has_failed = True
        source = _object(event.get("source")) or None
        if self._keep(KEPT_EACH + _size(error, source)):
            self._errors.append({"error": error, "source": source})

    def _keep(self, size: int) -> bool:
        """Whether there is room for so much more of what is told at the end."""
        if self._left >= 0:
            self._left -= size
        return self._left >= 0

    # Its end

    def _close(self, event: Object) -> None:
        self.outcome = Outcome.LEFT if event["inferred"] else Outcome.CLOSED

    def _settle(self, now: float) -> None:
        if not self._is_at_rest():
            self._rests_since = None
            return
        if self._rests_since is None:
            self._rests_since = now
        # Each message is a stream, or several; of an agent that does not tell its messages, one is awaited.
        expected = sum(map(bool, self._messages)) if self._tells else 1
        if not self._open and len(self._streams) >= expected:
            self._end()

    def _is_at_rest(self) -> bool:
        if self._state in BUSY or not self._was_busy or self._running or self._replies:
            return False
        return not self._speeches if self._has_speeches else not self._is_paused

    def _end(self) -> None:
        if self._has_failed:
            self.outcome = Outcome.FAILED
        elif self._was_interrupted:
            self.outcome = Outcome.INTERRUPTED
        elif self._messages or self._calls or any(each.text for each in self._streams.values()):
            self.outcome = Outcome.COMPLETED
        else:
            self.outcome = Outcome.DID_NOT_ANSWER


def _is_cut(text: str) -> bool:
    return len(text) in _CUT_TO and text.endswith("…")


def _whole(message: str, streams: list[str]) -> str:
    """With what the helper cut off, where that was said on a stream, too."""
    if _is_cut(message):
        begun = message[:-1].strip()
        return next((text for text in streams if text.startswith(begun)), message)
    return message.strip()


def _role(item: Object) -> object:
    """Of a message; None for what is none."""
    return item.get("role") if item.get("type") == "message" else None


def _text(item: Object) -> str:
    """What it says in letters."""
    return "\n".join(each for each in _list(item.get("content")) if isinstance(each, str))


# What an agent tells may have any form.


def _object(value: object) -> Object:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _string(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _id(value: object) -> str:
    return str(value)[:ID_CHARACTERS]


def _note(ids: set[str], one: object) -> None:
    if len(ids) < MOST_AT_ONCE:
        ids.add(_id(one))


def _number(value: object) -> float:
    is_number = isinstance(value, int | float) and abs(value) < _MOST
    return value if is_number else 0  # type: ignore[return-value]


_MOST = 2**53


def _size(*values: object) -> int:
    return sum(len(each) if isinstance(each, str) else len(json.dumps(each)) for each in values)


_USAGE: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "llm_metrics": (
        "llm_usage",
        {
            "prompt_tokens": "input_tokens",
            "prompt_cached_tokens": "input_cached_tokens",
            "completion_tokens": "output_tokens",
        },
    ),
    "realtime_model_metrics": (
        "llm_usage",
        {"input_tokens": "input_tokens", "output_tokens": "output_tokens"},
    ),
    "stt_metrics": (
        "stt_usage",
        {
            "input_tokens": "input_tokens",
            "output_tokens": "output_tokens",
            "audio_duration": "audio_duration",
        },
    ),
    "tts_metrics": (
        "tts_usage",
        {
            "input_tokens": "input_tokens",
            "output_tokens": "output_tokens",
            "characters_count": "characters_count",
            "audio_duration": "audio_duration",
        },
    ),
}
"""The metrics that say what was used, and what LiveKit Agents calls that in its usage."""

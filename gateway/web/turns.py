"""POST /rooms/{room}/agent/turns: a text to an agent, and what it answers, in one request."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from gateway.agent_session import CLOSED, KnownAgent, Source
from gateway.auth import Caller, TokenVerifier
from gateway.connection import Connection
from gateway.errors import (
    AgentAmbiguous,
    AgentClosed,
    AgentDidNotAnswer,
    AgentLeft,
    Draining,
    GatewayError,
    InvalidParameter,
    LiveKitUnavailable,
    NotAccepted,
    TokenExpired,
    TooManyTurns,
    TurnRunning,
    TurnTimedOut,
    UnsupportedMediaType,
)
from gateway.event_log import EventLog, Evicted
from gateway.events import (
    AGENTS,
    AgentTurnCompleted,
    AgentTurnStarted,
    ClosingReason,
    GatewayClosing,
    closing,
)
from gateway.hub import Hub
from gateway.idempotency import Attempt, IdempotencyKeys, Owner
from gateway.outgoing import Sent
from gateway.quota import Quota
from gateway.rooms.base import Participant, TextOptions
from gateway.settings import Settings
from gateway.transcripts import TRANSCRIPTION_TOPIC
from gateway.turn import Outcome, Turn
from gateway.web import frames, sse
from gateway.web.answer import unread
from gateway.web.body import JSON, PLAIN, BodyForm, body_form, json_members, require_encodable
from gateway.web.forms import EVENT_STREAM
from gateway.web.options import fingerprint, with_members
from gateway.web.parameters import (
    CHAT_TOPIC,
    Query,
    authenticate,
    idempotency_key,
    negotiated,
)
from gateway.web.reading import BodyReader, disconnected, drain_of
from gateway.web.turn_answers import ObjectAnswer, StreamedAnswer, TurnBody
from gateway.web.turn_options import NAMES, Asking, WhileRunning, asked_in, asking_of
from gateway.web.writing import Gone, Writings, require_valid, unless_gone

MAX_TURNS = 1_000
"""At a time: each holds a request, and a connection to LiveKit."""

MAX_TURNS_OF_IDENTITY = 100
"""Those that wait for one another among them, in whatever rooms."""

MAX_KEYS = 1_000
"""Answers that are remembered with an Idempotency-Key; each may have a quarter of a million characters."""

MAX_KEYS_OF_IDENTITY = 100

TOPICS = frozenset({AGENTS, TRANSCRIPTION_TOPIC})
"""What an answer is told on."""


class _Told(NamedTuple):
    """An answer that can be given again."""

    started: AgentTurnStarted
    completed: AgentTurnCompleted


class TurnsEndpoint:
    def __init__(
        self, hub: Hub, writings: Writings, verifier: TokenVerifier, settings: Settings
    ) -> None:
        self._hub = hub
        self._writings = writings
        self._verifier = verifier
        self._settings = settings
        self._keys: IdempotencyKeys[_Told] = IdempotencyKeys(MAX_KEYS, MAX_KEYS_OF_IDENTITY)
        self._running = _Running()
        self._quota = Quota(MAX_TURNS, MAX_TURNS_OF_IDENTITY, TooManyTurns, "turns", "the gateway")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            body, completed = await self._handle(request, send)
        except ClientDisconnect:
            await unread()(scope, receive, send)
        else:
            await body.end(completed)

    async def _handle(
        self, request: Request, send: Send
    ) -> tuple[TurnBody, AgentTurnCompleted | GatewayClosing]:
        """What is answered, and its last event."""
        since = asyncio.get_running_loop().time()
        query = Query(request, NAMES)
        caller = authenticate(request, query, self._verifier)
        caller.require_can_publish_data()
        caller.require_can_subscribe()
        streamed = negotiated(request, (EVENT_STREAM, JSON)) == EVENT_STREAM
        given = asked_in(query)
        form = body_form(request)
        if form.media_type not in (PLAIN, JSON):
            raise UnsupportedMediaType(f"A turn takes '{PLAIN}' or '{JSON}'.")
        body: TurnBody = (
            StreamedAnswer(request, send, self._settings.write_timeout)
            if streamed
            else ObjectAnswer(request, send)
        )
        key = idempotency_key(request)
        asked = fingerprint(given, form.media_type, form.compressed)
        owner = Owner(caller.room, caller.identity)
        attempting = nullcontext() if key is None else self._keys.attempt(owner, key, asked)
        with attempting as attempt:
            text, asking = await self._read(request, form, caller, given, attempt)
            if attempt is not None and attempt.is_repeated:
                told = attempt.first_answer()
                await body.begin(told.started)
            else:
                self._quota.take(caller.identity)
                try:
                    with self._running.one_more(owner, asking.while_running) as may_begin:
                        told = await self._ask(
                            caller,
                            text,
                            asking,
                            since,
                            may_begin,
                            body,
                            partial(disconnected, request),
                        )
                except _BrokenOff as broken:
                    self._hub.metrics.turns[broken.why.reason] += 1
                    if not body.has_begun:
                        raise _unheard(broken.why) from None
                    return body, broken.why
                finally:
                    self._quota.give_back(caller.identity)
                if attempt is not None:
                    attempt.succeed(told)
            return body, told.completed

    async def _read(
        self,
        request: Request,
        form: BodyForm,
        caller: Caller,
        given: dict[str, Any],
        attempt: Attempt[_Told] | None,
    ) -> tuple[str, Asking]:
        see = None if attempt is None else attempt.see
        reader = BodyReader(request, caller, self._settings.body_idle_timeout, see)
        draining = drain_of(self._hub)
        body = self._writings.whole_body(form, caller)
        try:
            while (data := await reader.next(draining)) is not None:
                self._hub.metrics.text_bytes += len(data)
                body.feed(data)
            text = body.text()
        finally:
            body.close()
        if form.media_type == JSON:
            beside = json_members(text)
            text = beside.pop("text", None)
            if not isinstance(text, str):
                raise InvalidParameter("The JSON member 'text' is missing or not a string.")
            given = with_members(given, beside, NAMES)
            require_encodable(text)
        if not text.strip():
            raise InvalidParameter("The text is empty: there is nothing to answer.")
        return text, asking_of(given)

    async def _ask(
        self,
        caller: Caller,
        text: str,
        asking: Asking,
        since: float,
        may_begin: Callable[[], Awaitable[None]],
        body: TurnBody,
        gone: Gone,
    ) -> _Told:
        expires = since + caller.expires_at - time.time()
        limit = min(since + asking.timeout, expires)
        await unless_gone(partial(_before, limit, may_begin), gone)
        async with self._hub.session(caller) as connection:
            connection.follow((TRANSCRIPTION_TOPIC,))
            try:
                agent, known = await unless_gone(partial(_agent, connection, asking, limit), gone)
                require_valid(caller)
                seq = connection.log.head.seq
                options = TextOptions(CHAT_TOPIC, (agent.identity,))
                sent = await connection.send_text(caller.identity, text, options)
                self._hub.metrics.texts_sent += 1
                turn = Turn(
                    agent.identity,
                    text,
                    known.state or agent.agent_state,
                    known.source in (Source.HELPER, Source.NATIVE),
                    now=asyncio.get_running_loop().time(),
                    limit=limit,
                )
                answering = _Answering(connection.log, turn, sent, body, self._settings.heartbeat)
                outcome = await answering.follow(seq)
            finally:
                connection.unfollow((TRANSCRIPTION_TOPIC,))
        self._hub.metrics.turns[outcome] += 1
        if not turn.has_begun:
            if outcome is Outcome.TIMED_OUT and time.time() >= caller.expires_at:
                raise TokenExpired("The token expired before the agent took the text.")
            raise _failed(turn)
        result = turn.result()
        return _Told(
            answering.started,
            AgentTurnCompleted(
                agent.identity,
                sent.stream_id,
                result["outcome"],
                result["text"],
                tuple(result["tool_calls"]),
                result["usage"],
                tuple(result["errors"]),
                result["truncated"],
            ),
        )


class _Running:
    """The callers that have a turn: one at a time each, so that what an agent says is the answer to one text."""

    def __init__(self) -> None:
        self._locks: dict[Owner, asyncio.Lock] = {}
        self._of: Counter[Owner] = Counter()

    @contextmanager
    def one_more(
        self, owner: Owner, otherwise: WhileRunning
    ) -> Iterator[Callable[[], Awaitable[None]]]:
        """Gives what returns when it is its turn. Raises TurnRunning."""
        if self._of[owner] and otherwise is WhileRunning.REJECT:
            raise TurnRunning("This participant has a turn that is not over; wait for its end.")
        lock = self._locks.setdefault(owner, asyncio.Lock())
        self._of[owner] += 1
        has_it = False

        async def may_begin() -> None:
            nonlocal has_it
            await lock.acquire()
            has_it = True

        try:
            yield may_begin
        finally:
            if has_it:
                lock.release()
            self._of[owner] -= 1
            if not self._of[owner]:
                del self._of[owner], self._locks[owner]


async def _before(limit: float, may_begin: Callable[[], Awaitable[None]]) -> None:
    """Raises TurnTimedOut."""
    try:
        async with asyncio.timeout_at(limit):
            await may_begin()
    except TimeoutError:
        raise TurnTimedOut(
            "The turns before this one took all of its time; nothing was sent."
        ) from None


async def _agent(
    connection: Connection, asking: Asking, limit: float
) -> tuple[Participant, KnownAgent]:
    """Who is asked. Raises TurnTimedOut, AgentUnavailable, AgentAmbiguous, AgentClosed."""
    left = limit - asyncio.get_running_loop().time()
    if left <= 0:
        raise TurnTimedOut("Joining the room took all of the time; nothing was sent.")
    await connection.until_agent_listens(min(asking.agent_timeout, left), asking.agent)
    there = [
        (participant, known)
        for participant, known in connection.agents
        if participant.agent_state and asking.agent in (None, participant.identity)
    ]
    there = [each for each in there if each[1].state != CLOSED] or there
    if len(there) > 1:
        names = ", ".join(sorted(participant.identity for participant, _ in there))
        raise AgentAmbiguous(f"Several agents are in the room; say 'agent=' one of {names}.")
    participant, known = there[0]
    if known.state == CLOSED:
        raise AgentClosed(
            f"The agent {participant.identity!r} is in the room, but its session has ended; nothing was sent."
        )
    return participant, known


class _Answering:
    """What follows a turn, from the sending of its text until it is over, whether its client is there or not."""

    def __init__(
        self, log: EventLog, turn: Turn, sent: Sent, body: TurnBody, heartbeat: float
    ) -> None:
        self.started = AgentTurnStarted(turn.agent, sent.stream_id, sent.position)
        self._log = log
        self._turn = turn
        self._body = body
        self._heartbeat = heartbeat
        self._changed = asyncio.Event()

    async def follow(self, seq: int) -> Outcome:
        self._log.watch(self._watch, TOPICS)
        try:
            while (outcome := self._turn.outcome) is None:
                self._changed.clear()
                seq = await self._read(seq)
                self._turn.look(asyncio.get_running_loop().time())
                if self._turn.is_over:
                    continue
                if seq < self._log.head.seq:
                    # An agent that tells without end is not to be all that is heard.
                    await asyncio.sleep(0)
                elif self._log.ended is not None:
                    raise _BrokenOff(self._log.ended)
                else:
                    await self._wait()
            return outcome
        finally:
            self._log.unwatch(self._watch, TOPICS)

    def _watch(self, _: object) -> None:
        self._changed.set()

    async def _read(self, seq: int) -> int:
        turn, loop = self._turn, asyncio.get_running_loop()
        try:
            entries, seq = self._log.read(seq, TOPICS)
        except Evicted:
            raise _BrokenOff(closing(ClosingReason.SLOW)) from None
        for entry in entries:
            had_begun = turn.has_begun
            shown = turn.feed(frames.event(entry), entry.frame, loop.time())
            if turn.has_begun and not had_begun:
                await self._body.begin(self.started)
            if shown:
                self._body.write(b"".join(shown))
        return seq

    async def _wait(self) -> None:
        """For the next event, or until it is time for something else."""
        loop = asyncio.get_running_loop()
        due = self._turn.due()
        beat = loop.time() + self._heartbeat
        try:
            async with asyncio.timeout_at(min(due, beat)):
                await self._changed.wait()
        except TimeoutError:
            if loop.time() < due and self._turn.has_begun:
                self._body.write(sse.comment("heartbeat"))


class _BrokenOff(Exception):
    """What the agent answers is not heard any more."""

    def __init__(self, why: GatewayClosing) -> None:
        super().__init__(why.reason)
        self.why = why


def _unheard(why: GatewayClosing) -> GatewayError:
    if why.reason is ClosingReason.DRAIN:
        return Draining("The gateway is going away; what the agent answers is not known.")
    if why.reason is ClosingReason.SLOW:
        return LiveKitUnavailable(
            "More came from the room than could be read; what the agent answers is not known."
        )
    return LiveKitUnavailable(
        f"The connection to LiveKit has ended ({why.reason}); what the agent answers is not known."
    )


def _failed(turn: Turn) -> GatewayError:
    """Why an answer has not begun."""
    match turn.outcome:
        case Outcome.CLOSED:
            return AgentClosed("The agent's session has ended; the text may not be heard.")
        case Outcome.LEFT:
            return AgentLeft("The agent left the room before it answered.")
        case Outcome.NOT_ACCEPTED:
            return NotAccepted(
                f"The agent {turn.agent!r} did not take the text into its conversation: it listens to another"
                " participant, or to none any more since this one left for good, or refused it."
            )
        case Outcome.DID_NOT_ANSWER:
            return AgentDidNotAnswer(
                f"The agent {turn.agent!r} showed no sign of having heard the text: its session may have ended"
                " when this participant left for good, or it listens to another."
            )
        case _:
            return TurnTimedOut("The agent did not take the text in the time of the request.")

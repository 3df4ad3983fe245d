"""Models of LiveKit Agents that do as they are told, step by step, and ask no network.

A step is what one request does; with none left a model does what is usual for it. A voice is a tone:
the detector hears how loud it is, what was said comes from the script.
"""

import asyncio
import json
import time
from collections import deque
from typing import Any

import numpy as np
from livekit.agents import (
    APIConnectionError,
    APIConnectOptions,
    APIStatusError,
    llm,
    stt,
    tts,
    utils,
    vad,
)
from livekit.agents.types import DEFAULT_API_CONNECT_OPTIONS

PROVIDER = "scripted"

Step = dict[str, Any]

SAMPLE_RATE = 24_000

LOUD = 1_000
"""Of 32767; the codec leaves some noise in silence."""

SILENCE_SECONDS = 0.2
"""Speech is over after it."""

INFERENCE_SECONDS = 0.05


class Unspeakable(Exception):
    """An error that cannot even be told."""

    def __str__(self) -> str:
        raise TypeError("it has no text")


def error_of(step: Step) -> Exception | None:
    """What a step fails with."""
    error: Exception | None
    match step.get("error"):
        case None:
            error = None
        case {"status_code": int(status_code), "body": body}:
            text = "the provider is out of order"
            error = APIStatusError(text, status_code=status_code, body=body)
        case "connection":
            error = APIConnectionError("the provider is out of reach")
        case "unspeakable":
            error = Unspeakable()
        case other:
            error = ValueError(other)
    return error


class ScriptedLLM(llm.LLM):
    """Answers `You said: …`. A step: text, calls, extra seconds before them, an error after them."""

    def __init__(self, model: str) -> None:
        super().__init__()
        self._model = model
        self.steps: deque[Step] = deque()
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()

    @property
    def model(self) -> str:
        return self._model

    @property
    def provider(self) -> str:
        return PROVIDER

    def chat(
        self,
        *,
        chat_ctx: llm.ChatContext,
        tools: list[llm.Tool] | None = None,
        conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS,
        **_: Any,
    ) -> llm.LLMStream:
        return _LLMStream(self, chat_ctx=chat_ctx, tools=tools or [], conn_options=conn_options)


class _LLMStream(llm.LLMStream):
    async def _run(self) -> None:
        model: ScriptedLLM = self._llm
        step: Step = model.steps.popleft() if model.steps else {"text": self._echo()}
        await asyncio.sleep(step.get("seconds", 0))
        for word in step.get("text", "").split(" "):
            if word:
                self._send(llm.ChoiceDelta(role="assistant", content=word + " "))
                await model.may_go_on.wait()
        for number, call in enumerate(step.get("calls", ())):
            self._send(llm.ChoiceDelta(role="assistant", tool_calls=[_call(number, **call)]))
        if error := error_of(step):
            raise error
        usage = llm.CompletionUsage(completion_tokens=7, prompt_tokens=11, total_tokens=18)
        self._event_ch.send_nowait(llm.ChatChunk(id="scripted", usage=usage))

    def _echo(self) -> str:
        users = (item for item in reversed(self.chat_ctx.messages()) if item.role == "user")
        last = next(users, None)
        return f"You said: {last.text_content if last else 'nothing'}"

    def _send(self, delta: llm.ChoiceDelta) -> None:
        self._event_ch.send_nowait(llm.ChatChunk(id="scripted", delta=delta))


def _call(number: int, name: str, **arguments: Any) -> llm.FunctionToolCall:
    call_id = f"call_{number}_{utils.shortuuid()}"
    return llm.FunctionToolCall(name=name, arguments=json.dumps(arguments), call_id=call_id)


class ScriptedTTS(tts.TTS):
    """A tenth of a second of silence for each request. A step: seconds of audio, an error."""

    def __init__(self, model: str) -> None:
        capabilities = tts.TTSCapabilities(streaming=False)
        super().__init__(capabilities=capabilities, sample_rate=SAMPLE_RATE, num_channels=1)
        self._model = model
        self.steps: deque[Step] = deque()

    @property
    def model(self) -> str:
        return self._model

    @property
    def provider(self) -> str:
        return PROVIDER

    def synthesize(
        self, text: str, *, conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS
    ) -> tts.ChunkedStream:
        return _ChunkedStream(tts=self, input_text=text, conn_options=conn_options)


class _ChunkedStream(tts.ChunkedStream):
    async def _run(self, output_emitter: tts.AudioEmitter) -> None:
        step = self._tts.steps.popleft() if self._tts.steps else {}
        if error := error_of(step):
            raise error
        output_emitter.initialize(
            request_id="scripted",
            sample_rate=SAMPLE_RATE,
            num_channels=1,
            mime_type="audio/pcm",
        )
        output_emitter.push(bytes(2 * int(SAMPLE_RATE * step.get("seconds", 0.1))))
        output_emitter.flush()


class ScriptedSTT(stt.STT):
    """Hears what it is given, a speech event a step, or an error."""

    def __init__(self, model: str) -> None:
        super().__init__(capabilities=stt.STTCapabilities(streaming=True, interim_results=True))
        self._model = model
        self.steps: asyncio.Queue[Step] = asyncio.Queue()

    @property
    def model(self) -> str:
        return self._model

    @property
    def provider(self) -> str:
        return PROVIDER

    async def _recognize_impl(self, *_: Any, **__: Any) -> stt.SpeechEvent:
        raise NotImplementedError("it only streams")

    def stream(
        self, *, conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS, **_: Any
    ) -> stt.RecognizeStream:
        return _RecognizeStream(stt=self, conn_options=conn_options)


class _RecognizeStream(stt.RecognizeStream):
    async def _run(self) -> None:
        hearing = asyncio.create_task(self._hear())
        try:
            async for _ in self._input_ch:
                if hearing.done():
                    break
        finally:
            hearing.cancel()
        if hearing.done() and not hearing.cancelled():
            hearing.result()

    async def _hear(self) -> None:
        while True:
            step = await self._stt.steps.get()
            if error := error_of(step):
                raise error
            self._event_ch.send_nowait(_speech_event(**step))


def _speech_event(type: str, text: str = "", **data: Any) -> stt.SpeechEvent:
    kind = stt.SpeechEventType(type)
    if kind == stt.SpeechEventType.RECOGNITION_USAGE:
        return stt.SpeechEvent(
            type=kind, recognition_usage=stt.RecognitionUsage(audio_duration=1.5)
        )
    language = data.pop("language", "en")
    heard = stt.SpeechData(language=language, text=text, confidence=0.9, **data)
    return stt.SpeechEvent(type=kind, alternatives=[heard])


class ToneVAD(vad.VAD):
    """Takes what is loud for speech."""

    def __init__(self) -> None:
        super().__init__(capabilities=vad.VADCapabilities(update_interval=INFERENCE_SECONDS))

    @property
    def model(self) -> str:
        return "tone"

    @property
    def provider(self) -> str:
        return PROVIDER

    def stream(self) -> vad.VADStream:
        return _VADStream(self)


class _VADStream(vad.VADStream):
    async def _main_task(self) -> None:
        speech = silence = 0.0
        speaking = False
        async for frame in self._input_ch:
            if isinstance(frame, vad.VADStream._FlushSentinel):
                speech, silence, speaking = 0.0, 0.0, False
                continue
            loud = bool(np.abs(np.frombuffer(frame.data, np.int16).astype(int)).max() > LOUD)
            was_speaking = speaking
            silence = 0.0 if loud else silence + frame.duration
            speaking = loud or (speaking and silence < SILENCE_SECONDS)
            speech = speech + frame.duration if speaking else speech
            kinds = [vad.VADEventType.INFERENCE_DONE]
            if speaking and not was_speaking:
                kinds.append(vad.VADEventType.START_OF_SPEECH)
            elif was_speaking and not speaking:
                kinds.append(vad.VADEventType.END_OF_SPEECH)
            for kind in kinds:
                event = vad.VADEvent(
                    type=kind,
                    samples_index=0,
                    timestamp=time.time(),
                    speech_duration=speech,
                    silence_duration=silence,
                    frames=[frame],
                    probability=float(speaking),
                    inference_duration=0.001,
                    speaking=speaking,
                    raw_accumulated_silence=silence,
                    raw_accumulated_speech=speech if speaking else 0.0,
                )
                self._event_ch.send_nowait(event)
            if not speaking:
                speech = 0.0

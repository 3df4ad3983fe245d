"""A stand-in for a language model: it follows a script, asks no network and needs no key.

To LiveKit Agents it is an LLM like any other. It looks for a word in what the user said, and then
answers, calls a tool, or fails.
"""

import asyncio
import json
import re
from typing import Any

from livekit.agents import APIConnectOptions, APIStatusError, llm, utils
from livekit.agents.types import DEFAULT_API_CONNECT_OPTIONS

TRY = (
    "Try: weather in Paris, book a table for 4, cancel the table,"
    " break and recover my first model, fail."
)

WORD_SECONDS = 0.05
"""Between two words: a model takes its time as well."""


class ScriptedLLM(llm.LLM):
    def __init__(self, model: str, *, breakable: bool = False) -> None:
        """One that is `breakable` fails from the user's `break` until `recover`."""
        super().__init__()
        self._model = model
        self.breakable = breakable
        self.failed_at = ""
        """The id of the last message with `fail` in it: the next try at it succeeds."""

    @property
    def model(self) -> str:
        return self._model

    @property
    def provider(self) -> str:
        return "script"

    def chat(
        self,
        *,
        chat_ctx: llm.ChatContext,
        tools: list[llm.Tool] | None = None,
        conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS,
        **_: Any,
    ) -> llm.LLMStream:
        return _Answer(self, chat_ctx=chat_ctx, tools=tools or [], conn_options=conn_options)


class _Answer(llm.LLMStream):
    async def _run(self) -> None:
        request = utils.shortuuid("script_")
        self._fail_if_told()
        call = self._call()
        words = [] if call else self._text().split(" ")
        for word in words:
            delta = llm.ChoiceDelta(role="assistant", content=f"{word} ")
            self._event_ch.send_nowait(llm.ChatChunk(id=request, delta=delta))
            await asyncio.sleep(WORD_SECONDS)
        if call:
            delta = llm.ChoiceDelta(role="assistant", tool_calls=[call])
            self._event_ch.send_nowait(llm.ChatChunk(id=request, delta=delta))
        self._event_ch.send_nowait(llm.ChatChunk(id=request, usage=self._usage(words)))

    def _fail_if_told(self) -> None:
        users = [message for message in self.chat_ctx.messages() if message.role == "user"]
        switches = [words for words in map(_words, users) if words & {"break", "recover"}]
        fails = self._llm.breakable and bool(switches) and "break" in switches[-1]
        if users and "fail" in _words(users[-1]) and self._llm.failed_at != users[-1].id:
            self._llm.failed_at = users[-1].id
            fails = True
        if fails:
            body = {"error": {"code": "overloaded", "message": "Try again later."}}
            raise APIStatusError("the model is out of order", status_code=503, body=body)

    def _call(self) -> llm.FunctionToolCall | None:
        last = self.chat_ctx.items[-1]
        if last.type != "message" or last.role != "user":
            return None
        said, words = last.text_content or "", _words(last)
        if "weather" in words:
            city = re.search(r"\bin (\w+)", said)
            return _tool_call("weather", city=city[1] if city else "Paris")
        if "book" in words:
            guests = re.search(r"\d+", said)
            return _tool_call("book_table", guests=int(guests[0]) if guests else 2)
        return _tool_call("cancel_table") if "cancel" in words else None

    def _text(self) -> str:
        last = self.chat_ctx.items[-1]
        if last.type == "message" and last.role == "user":
            return f"You said: {last.text_content}. I am {self._llm.model}, a script. {TRY}"
        outputs = [item for item in self.chat_ctx.items if item.type == "function_call_output"]
        if outputs:
            # Of a tool that still runs, its word stands among instructions to a model.
            return str(outputs[-1].output.split("\n")[0].split("message: ")[-1])
        return f"Hello! I am a script, in the place of a model. {TRY}"

    def _usage(self, words: list[str]) -> llm.CompletionUsage:
        """A word is a token here."""
        read = sum(len((each.text_content or "").split()) for each in self.chat_ctx.messages())
        said = max(len(words), 1)
        return llm.CompletionUsage(
            prompt_tokens=read, completion_tokens=said, total_tokens=read + said
        )


def _words(message: llm.ChatMessage) -> set[str]:
    return set(re.findall(r"\w+", (message.text_content or "").lower()))


def _tool_call(name: str, **arguments: Any) -> llm.FunctionToolCall:
    call_id = utils.shortuuid("call_")
    return llm.FunctionToolCall(name=name, arguments=json.dumps(arguments), call_id=call_id)

"""An agent whose room is told all that it does: tools, two models of which one takes over, errors.

    python -m livekit.agents start examples/agent.py --dev

README.md, beside this file, says what it needs and what to say to it.
"""

import asyncio

from livekit.agents import (
    Agent,
    AgentServer,
    AgentSession,
    APIConnectOptions,
    JobContext,
    JobExecutorType,
    RunContext,
    ToolError,
    cli,
    function_tool,
    llm,
)
from livekit.agents.voice.agent_session import SessionConnectOptions
from livekit.agents.voice.room_io import RoomOptions

from livekit_sse_gateway_agent import report
from scripted_llm import ScriptedLLM

RESTAURANT_SECONDS = 4.0
"""It takes its time to answer."""

server = AgentServer(
    job_executor_type=JobExecutorType.THREAD,
    # By the machine's load, LiveKit would give an agent on a busy laptop no job at all.
    load_fnc=lambda: 0.0,
    host="127.0.0.1",
    port=0,
)


def models() -> list[llm.LLM]:
    """The first answers; the second does while the first is out of order.

    Real ones go here. With livekit-plugins-openai installed and OPENAI_API_KEY set:

        return [openai.LLM(model="gpt-4.1-mini"), openai.LLM(model="gpt-4o-mini")]
    """
    return [ScriptedLLM("first", breakable=True), ScriptedLLM("second")]


class Host(Agent):
    def __init__(self) -> None:
        super().__init__(instructions="You take bookings for a restaurant. Be brief.")
        self._guests = 0

    @function_tool
    async def weather(self, city: str) -> str:
        """Tells what the weather is like in a city."""
        return f"It is sunny in {city}, with 21 °C."

    @function_tool
    async def book_table(self, context: RunContext[None], guests: int) -> str:
        """Books a table for this evening."""
        # What takes long says so first, and the conversation goes on meanwhile.
        await context.update("I am asking the restaurant, one moment.")
        await asyncio.sleep(RESTAURANT_SECONDS)
        self._guests = guests
        return f"The table for {guests} is booked."

    @function_tool
    async def cancel_table(self) -> str:
        """Cancels the table that was booked."""
        if not self._guests:
            raise ToolError("No table is booked.")
        self._guests = 0
        return "The table is cancelled."


@server.rtc_session()
async def host(ctx: JobContext) -> None:
    await ctx.connect()
    session = AgentSession[None](
        llm=llm.FallbackAdapter(models()),
        # A model that fails is not asked again at once: the next one is.
        conn_options=SessionConnectOptions(llm_conn_options=APIConnectOptions(max_retry=0)),
        # Text only: nothing is to be heard.
        vad=None,
        turn_handling={"turn_detection": None},
    )
    report(session)
    await session.start(
        Host(),
        room=ctx.room,
        room_options=RoomOptions(audio_input=False, audio_output=False),
    )
    session.generate_reply(instructions="Greet the user, and say what you can do.")


if __name__ == "__main__":
    cli.run_app(server)

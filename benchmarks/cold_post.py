"""`python -m benchmarks.cold_post`: the first POST of somebody who is not in the room, beside a join by the SDK."""

import sys
from statistics import median, quantiles

from benchmarks.runner import markdown, run
from benchmarks.stage import Stage, report, working

ROUNDS = 40

WARM_UP = 3

GOAL = 0.05
"""Seconds beyond a join; 30 ms of them are the wait of an announcement where an agent is."""

RUN_SECONDS = 240.0
"""It takes about 40."""


async def measure(stage: Stage) -> str:
    joins: list[float] = []
    posts: list[float] = []
    posts_with_agent: list[float] = []
    async with (
        working("newcomers", stage.place("cold-join", "unused")) as joiner,
        working("newcomers", stage.place("cold-post", "unused")) as poster,
        working("newcomers", stage.place("cold-agent", "unused")) as agents,
        working("newcomers", stage.place("cold-agent", "unused")) as poster_with_agent,
    ):
        for number in range(WARM_UP + ROUNDS):
            if number % 10 == 0:
                report(f"{number} of {WARM_UP + ROUNDS}")
            await agents.do("bring_agent", number)
            joins.append(await joiner.do("join", number))
            posts.append(await poster.do("post", number))
            posts_with_agent.append(await poster_with_agent.do("post", number))
    figures = {
        "join by the SDK": joins[WARM_UP:],
        "first POST": posts[WARM_UP:],
        "first POST, an agent is there": posts_with_agent[WARM_UP:],
    }
    rows = [
        (
            name,
            f"{median(seconds) * 1e3:.1f}",
            f"{quantiles(seconds, n=20)[-1] * 1e3:.1f}",
            f"{(median(seconds) - median(joins[WARM_UP:])) * 1e3:+.1f}",
        )
        for name, seconds in figures.items()
    ]
    return (
        f"In rooms that are new, in turns ({ROUNDS} of each; goal: p50 at most {GOAL * 1e3:g} ms beyond"
        f" a join):\n\n{markdown(('', 'p50 ms', 'p95 ms', 'p50 beyond a join, ms'), rows)}"
    )


if __name__ == "__main__":
    sys.exit(run(measure, within=RUN_SECONDS))

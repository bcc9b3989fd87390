"""A first agent: an ordinary `async def`, two tools side by side, and a process that may die.

    python examples/first_agent.py

Every line with `->` is a call that really happens. It takes three seconds: kill the process in the
middle (`kill -9`, or Ctrl-C) and run the same command again. What was recorded is not called again;
the run goes on from where it was. Run it once more: the result is there at once. See also:

    agentflow show first-agent --events
    agentflow cost first-agent
"""

from __future__ import annotations

import asyncio
import os

from _model import model

import agentflow
from agentflow import Agent, tool, workflow
from agentflow.providers.scripted import call, script


@tool(effect="read")
async def weather(city: str) -> str:
    """Tell tomorrow's weather in a city."""
    print(f"-> weather({city})", flush=True)
    await asyncio.sleep(1)  # a slow service; this is an activity, so it may do what it likes
    return {"Oslo": "snow, -4 degrees", "Rome": "sun, 19 degrees"}.get(city, "no data")


@tool
async def book(city: str) -> str:
    """Book a train to a city."""
    print(f"-> book({city})", flush=True)
    await asyncio.sleep(1)
    return f"One seat to {city}, booking number 4711."


script(
    "first-agent",  # what the model says where there is no key: a turn a line
    [
        [call("weather", city="Oslo"), call("weather", city="Rome")],
        call("book", city="Rome"),
        "Rome has sun tomorrow and Oslo has snow, so I booked a seat to Rome: number 4711.",
    ],
)

travel_agent = Agent(
    "travel agent",
    model=model("first-agent"),
    instructions="Compare the weather, then book the train to where it is warmer.",
    tools=[weather, book],
)


@workflow
async def plan_trip(wish: str) -> str:
    """Let the agent plan a trip, and return what it says."""
    return (await travel_agent.run(wish)).output


async def main() -> None:
    """Start the run, or go on with it: the id says which."""
    print(f"process {os.getpid()}")
    async with agentflow.open() as flow:
        run = await flow.start(plan_trip, "Oslo or Rome tomorrow?", id="first-agent")
        print(await run.result())
        print(f"cost: {await run.cost()}")


if __name__ == "__main__":
    asyncio.run(main())

"""Ten reviews, read overnight for half the price: one batch for ten runs that wait as ten rows.

    python examples/overnight.py

With ANTHROPIC_API_KEY or OPENAI_API_KEY set, the batch is a real one and may take hours: end the
process when you like, and run the same command again. What was sent is not sent again; the runs
go on from where they were. Without a key a script answers at once. See also:

    agentflow list --tag reviews
    agentflow explain review-1
"""

from __future__ import annotations

import asyncio
import os

from _model import model

import agentflow
from agentflow import Agent, workflow
from agentflow.llm import ModelRequest
from agentflow.providers.scripted import script

REVIEWS = [
    "The lamp is bright, and the switch is where a hand finds it.",
    "It flickered for a day. Then it did not light at all.",
    "A birthday present. She reads by it every evening.",
    "The cable is too short for any room that I know.",
    "Good light, good price, and it came a day early.",
    "The shade was cracked, and nobody answers the telephone.",
    "I bought a second one for the kitchen.",
    "It hums. You will notice at night.",
    "Warm light, heavy foot, no wobble.",
    "Sent back.",
]


@script("reviews")
def read(request: ModelRequest) -> str:
    """Say what the model says where there is no key."""
    words = ("flicker", "short", "cracked", "hums", "Sent back")
    review = request.messages[-1].text
    return "unhappy" if any(word in review for word in words) else "happy"


reader = Agent(
    "reader",
    model=model("reviews"),
    instructions="Is the customer happy? Answer with one word: happy or unhappy.",
    latency="24h",
)


@workflow
async def classify(review: str) -> str:
    """Ask; the answer may wait until tomorrow."""
    return (await reader.run(review)).output


async def main() -> None:
    """Start the runs, or go on with them, and count what they say."""
    print(f"process {os.getpid()}")
    async with agentflow.open() as flow:
        runs = [
            await flow.start(classify, review, id=f"review-{n}", tags=["reviews"])
            for n, review in enumerate(REVIEWS, start=1)
        ]
        found = [await run.result() for run in runs]
        print(f"{found.count('happy')} happy, {found.count('unhappy')} unhappy")


if __name__ == "__main__":
    asyncio.run(main())

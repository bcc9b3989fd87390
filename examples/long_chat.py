"""A long chat: messages come as signals, the conversation is carried over, old turns are summed up.

    python examples/long_chat.py                        # 30 messages
    python examples/long_chat.py "What is my name?"     # the same chat goes on, also days later

Kill it in the middle and run it again: a signal is durable once it was sent, each has an id of its
own, and an answer that was recorded is not asked for again. The model never sees more than about 20
messages: what is older becomes a summary. A message is stored once, however many calls contain it.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Sequence

from _model import model

import agentflow
from agentflow import Agent, workflow
from agentflow.agents import summarise
from agentflow.llm import Messages, ModelRequest
from agentflow.providers.scripted import script


@script("friend")
def friend_script(request: ModelRequest) -> str:
    """Answer from what this request contains, as a model would."""
    said = [m.text for m in request.messages]
    names = re.findall(r"name is (\w+)", " ".join(said))
    if "name?" in said[-1]:
        return f"You are {names[-1]}." if names else "You have not told me."
    return f"I see ({len(said)} messages in view)."


@script("summary")
def summary_script(request: ModelRequest) -> str:
    """Keep what matters."""
    name = re.search(r"name is \w+", request.messages[-1].text)
    return f"The user's {name[0]}. They counted sheep." if name else "They counted sheep."


note_taker = Agent("note taker", model=model("summary"), instructions="Keep names and facts.")
shorter = summarise(note_taker, over_messages=20, keep=6)
friend = Agent("friend", model=model("friend"), instructions="Chat. Be brief.", compact=shorter)


@workflow
async def chat(conversation: Messages | None = None, turns: int = 0) -> None:
    """Answer each signal `say`; after 25 turns begin a new segment, so that replay stays short."""
    async for text in agentflow.signals("say", str):
        result = await friend.run(text, conversation=conversation)
        conversation, turns = result.messages, turns + 1
        agentflow.set_attributes(turns=turns, answer=result.output)
        if turns % 25 == 0:
            agentflow.continue_as_new(conversation, turns)


SHEEP = ["Hi, my name is Ada.", *(f"Sheep number {n}." for n in range(1, 29)), "What is my name?"]


async def main(lines: Sequence[str]) -> None:
    """Say each line that was not said yet, and wait for its answer."""
    async with agentflow.open() as flow:
        run = await flow.start(chat, id="chat-1")
        done = (await run.info()).attributes.get("turns", 0)
        first = 1 if lines is SHEEP else done + 1
        for number, line in enumerate(lines, first):
            if number > done:
                await run.signal("say", line, id=f"message-{number}")
                row = await run.until(lambda row: row.attributes.get("turns") == number)  # noqa: B023
                print(f"{number:3} you: {line}\n    bot: {row.attributes['answer']}", flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:] or SHEEP))

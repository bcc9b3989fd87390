"""An approval that waits: the agent wants to publish, and a person must allow the exact call.

    python examples/approval.py      # writes, then asks, and ends: nothing has to keep running
    agentflow approve ID             # as it says; or: agentflow deny ID --reason "too loud"
    python examples/approval.py      # goes on: publishes, or hears the reason and does not

Between the commands the run is a row in `agentflow.db`: a day, a reboot or `kill -9` later it is
still there. The approval is bound to the arguments that you saw, and it is used once.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from _model import model

import agentflow
from agentflow import Agent, Run, tool, workflow
from agentflow.llm import ModelRequest
from agentflow.providers.scripted import ToolCall, call, script


@tool(effect="once", needs_approval=True)
async def publish(title: str, text: str) -> str:
    """Publish an article. Everybody will read it."""
    print(f"-> publish({title!r})", flush=True)
    with Path("published.txt").open("a", encoding="utf-8") as file:  # noqa: ASYNC230 -- a demo
        file.write(f"{title}\n{text}\n")
    return "It is out."


@script("editor")
def editor_script(request: ModelRequest) -> str | ToolCall:
    """Ask to publish, then report what became of it."""
    *before, last = request.messages
    if not before:
        return call("publish", title="Agents that survive", text="They write things down.")
    return f"I asked to publish it. The answer: {last.parts[0].content}"


editor = Agent(
    "editor",
    model=model("editor"),
    instructions="Write two sentences about the topic and publish them.",
    tools=[publish],
)


@workflow
async def article(topic: str) -> str:
    """Write and publish an article about *topic*."""
    return (await editor.run(topic)).output


async def main() -> None:
    """Start the run or go on with it, until it ends or somebody has to do something."""
    async with agentflow.open() as flow:
        run: Run[str] = await flow.start(article, "durable agents", id="article-1")
        while not (questions := await flow.approvals(run_id=run.id)):
            if await run.status() in {"completed", "failed"}:
                print(await run.result())
                return
            await asyncio.sleep(0.05)
        for question in questions:
            print(question.question)
            print(f"  agentflow approve {question.id}")
            print(f'  agentflow deny {question.id} --reason "…"')
        print("Then run this again.")


if __name__ == "__main__":
    asyncio.run(main())

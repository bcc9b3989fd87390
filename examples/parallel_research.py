"""Parallel research: a planner, a researcher for each question side by side, a writer.

    python examples/parallel_research.py
    python examples/parallel_research.py "How does Python store data?"

The researchers run in a plain `asyncio.TaskGroup`. Without a key the models are scripted, but the
tool really reads the documentation of Python's standard library. Kill it in the middle and run it
again: each branch finds its own recorded answers, whichever order they came in.
"""

from __future__ import annotations

import ast
import asyncio
import json
import sys
from importlib.util import find_spec
from pathlib import Path

from _model import model
from pydantic import BaseModel

import agentflow
from agentflow import Agent, NonRetryableError, tool, workflow
from agentflow.llm import ModelRequest
from agentflow.providers.scripted import ToolCall, call, script


class Plan(BaseModel):
    """Questions, each about one module of the standard library, named first: `queue: What …`."""

    questions: list[str]


@tool(effect="read")
def read_docs(module: str) -> str:
    """Read the documentation of a module of Python's standard library."""
    print(f"-> read_docs({module})", flush=True)
    spec = find_spec(module) if module in sys.stdlib_module_names else None
    if spec is None or not (spec.origin or "").endswith(".py"):
        msg = f"there is no documentation of {module!r}"
        raise NonRetryableError(msg)
    source = Path(str(spec.origin)).read_text(encoding="utf-8")
    return ast.get_docstring(ast.parse(source)) or "no documentation"


MODULES = ("threading", "asyncio", "selectors", "queue")
script("planner", [json.dumps({"questions": [f"{m}: What is it for?" for m in MODULES]})])
script("writer", lambda request: "Found:\n" + request.messages[-1].text)


@script("researcher")
def researcher_script(request: ModelRequest) -> str | ToolCall:
    """Read the module that the question names; then quote the first line of what it says."""
    question, *rest = request.messages
    module = question.text.partition(":")[0]
    if not rest:
        return call("read_docs", module=module)
    return f"{module}: {rest[-1].parts[0].content.splitlines()[0]}"


planner = Agent("planner", model=model("planner"), output_type=Plan)
researcher = Agent("researcher", model=model("researcher"), tools=[read_docs], max_turns=5)
writer = Agent("writer", model=model("writer"), instructions="Sum the findings up, a line each.")


@workflow
async def research(topic: str) -> str:
    """Plan, look up all questions at the same time, write."""
    plan = (await planner.run(topic)).output
    async with asyncio.TaskGroup() as group:
        parts = [group.create_task(researcher.run(q)) for q in plan.questions]
    report = await writer.run("\n".join(p.result().output for p in parts))
    return report.output


if __name__ == "__main__":
    asked = sys.argv[1] if len(sys.argv) > 1 else "How does Python do several things at once?"
    print(agentflow.run_sync(research, asked, id=f"research: {asked}"))

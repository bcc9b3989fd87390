"""A code-base analyst: it reads the real files of a folder, of no other, and reports on them.

    python examples/codebase_analyst.py FOLDER ["Another question?"]

Without a key a script decides. `kill -9` it and run it again: what was read is not read again.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from pathlib import Path

from _model import model

from agentflow import ActivityContext, Agent, NonRetryableError, run_sync, tool, workflow
from agentflow.llm import ModelRequest
from agentflow.providers.scripted import ToolCall, call, script


def inside(ctx: ActivityContext, path: str = ".") -> Path:
    """Return a path of the folder; what leads out of it is refused, links too."""
    root: Path = ctx.resources["folder"].resolve()
    if (found := (root / path).resolve()).is_relative_to(root):
        return found
    raise NonRetryableError(f"{path} is outside of the folder")


@tool(effect="read", retry=1)
def list_files(ctx: ActivityContext, pattern: str = "*.py") -> list[str]:
    """List the files that match a glob, 200 at most."""
    print(f"-> list_files({pattern})", flush=True)
    return [str(p.relative_to(inside(ctx))) for p in sorted(inside(ctx).rglob(pattern))][:200]


@tool(effect="read", retry=1)
def read_file(ctx: ActivityContext, path: str) -> str:
    """Read a text file, 100,000 characters at most."""
    print(f"-> read_file({path})", flush=True)
    return inside(ctx, path).read_text(errors="replace")[:100_000]


@tool(effect="read", retry=1)
def grep(ctx: ActivityContext, path: str, pattern: str) -> list[str]:
    """Find the lines of a file that match a regular expression, 50 at most."""
    print(f"-> grep({path}, {pattern})", flush=True)
    text = inside(ctx, path).read_text(errors="replace")
    return [line for line in text.splitlines() if re.search(pattern, line)][:50]


@script("analyst")
async def analyst_script(request: ModelRequest) -> str | ToolCall | list[ToolCall]:
    """List the files, read three of them, search those; tell what was found."""
    await asyncio.sleep(0.7)  # models think
    if len(request.messages) == 1:
        return call("list_files")
    calls = request.messages[-2].tool_calls
    told = [getattr(part, "content", "") for part in request.messages[-1].parts]
    if calls[0].name == "list_files":
        return [call("read_file", path=p) for p in json.loads(told[0])[:3]] or "No Python here."
    paths = [json.loads(c.arguments)["path"] for c in calls]
    if calls[0].name == "read_file":
        return [call("grep", path=path, pattern="^(class|def) ") for path in paths]
    return "\n".join(f"{p}: {'; '.join(json.loads(t))}" for p, t in zip(paths, told, strict=True))


analyst = Agent("analyst", model=model("analyst"), tools=[list_files, read_file, grep])


@workflow
async def analyse(folder: str, question: str = "What is in this code?") -> str:
    """Answer a question about the code in *folder*."""
    return (await analyst.run(f"{question} Read it with your tools. It is in {folder}.")).output


if __name__ == "__main__":
    words = sys.argv[1:] or sys.exit(__doc__)
    print(run_sync(analyse, *words, id=" ".join(words), resources={"folder": Path(words[0])}))

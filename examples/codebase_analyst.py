"""A code-base analyst: it reads the real files of a folder and reports on them.

    python examples/codebase_analyst.py FOLDER ["Another question?"]

Its tools refuse every path outside of the folder. Without a key a script decides what to read, from
what the tools really answered. `kill -9` it and run it again: what was read is not read again.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from pathlib import Path

from _model import model

import agentflow
from agentflow import ActivityContext, Agent, NonRetryableError, tool, workflow
from agentflow.llm.request import ModelRequest
from agentflow.providers.scripted import ToolCall, call, script


def inside(ctx: ActivityContext, path: str = ".") -> Path:
    """Return a path of the folder; what leads out of it is refused, links too."""
    found: Path = (ctx.resources["folder"] / path).resolve()
    if not found.is_relative_to(ctx.resources["folder"]):
        raise NonRetryableError(f"{path} is outside of the folder")
    return found


@tool(effect="read", retry=1)
def list_files(ctx: ActivityContext, pattern: str = "*.py") -> list[str]:
    """List the files that match a glob, the largest first, 200 at most."""
    print(f"-> list_files({pattern})", flush=True)
    found = [p for p in inside(ctx).rglob(pattern) if p.is_file() and not p.is_symlink()]
    found.sort(key=lambda path: (-path.stat().st_size, path))
    return [str(p.relative_to(inside(ctx))) for p in found[:200]]


@tool(effect="read", retry=1)
def read_file(ctx: ActivityContext, path: str) -> str:
    """Read a text file, 100,000 characters at most."""
    print(f"-> read_file({path})", flush=True)
    return inside(ctx, path).read_text(errors="replace")[:100_000]


@tool(effect="read", retry=1)
def grep(ctx: ActivityContext, path: str, pattern: str) -> list[str]:
    """Find the lines of a file that match a regular expression, as `LINE: TEXT`, 50 at most."""
    print(f"-> grep({path}, {pattern})", flush=True)
    lines = enumerate(inside(ctx, path).read_text(errors="replace").splitlines(), 1)
    return [f"{number}: {text.strip()}" for number, text in lines if re.search(pattern, text)][:50]


@script("analyst")
async def analyst_script(request: ModelRequest) -> str | ToolCall | list[ToolCall]:
    """List the files, read the three largest, search the first; tell what was found."""
    await asyncio.sleep(0.7)  # models think
    told = [getattr(part, "content", "") for part in request.messages[-1].parts]
    match len(request.messages):
        case 1:
            return call("list_files")
        case 3:
            paths = json.loads(told[0])[:3]
            search = call("grep", path=paths[0], pattern="^(class|def|async def) ")
            return [search, *(call("read_file", path=path) for path in paths)]
    paths = [json.loads(c.arguments)["path"] for c in request.messages[-2].tool_calls]
    sizes = [f"{path}: {len(text.splitlines())} lines" for path, text in zip(paths, told)][1:]
    return "\n".join(["The largest files:", *sizes, f"In {paths[0]}:", *json.loads(told[0])])


TOOLS = [list_files, read_file, grep]
HOW = "Read what matters in this folder with your tools, then answer. Name the files."
analyst = Agent("analyst", model=model("analyst"), instructions=HOW, tools=TOOLS)


@workflow
async def analyse(folder: str, question: str) -> str:
    """Answer a question about the code in *folder*."""
    return (await analyst.run(f"{question} (The folder is {Path(folder).name}.)")).output


if __name__ == "__main__":
    where, question = Path(sys.argv[1]).resolve(), " ".join(sys.argv[2:]) or "What is in this code?"
    run_id = f"{where.name}: {question}"
    print(agentflow.run_sync(analyse, str(where), question, id=run_id, resources={"folder": where}))

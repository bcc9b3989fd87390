"""What a process does not need it does not load: the start is short because little is imported."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import agentflow

HERE = Path(agentflow.__file__).parent
NEVER = {
    "anthropic", "cryptography", "genai_prices", "httpx2", "openai", "rich", "click", "psycopg",
    "sqlalchemy.dialects.postgresql", "sqlalchemy.dialects.mysql", "sqlalchemy.orm",
    "agentflow.cli", "agentflow.crypto", "agentflow.providers", "agentflow.testing",
    "agentflow.ledger.audit", "agentflow.ledger.export", "agentflow.ledger.overlay_file",
    "agentflow.ledger.prices", "agentflow.ledger.rates", "agentflow.ledger.reconcile",
    "difflib", "html", "tomllib",
}  # fmt: skip
"""What no plain workflow needs."""

NAMES = """
from agentflow import Agent, activity, open, tool, workflow
from agentflow.agents import keep_last, summarise
from agentflow.llm import ImagePart, Message, Messages
"""
PLAIN = """
import asyncio
from agentflow import activity, open, workflow

@activity
async def double(x: int) -> int:
    return 2 * x

@workflow
async def once(x: int) -> int:
    return await double(x)

async def main() -> None:
    async with open("sqlite:///plain.db") as flow:
        run = await flow.start(once, 21)
        assert await run.result() == 42

asyncio.run(main())
"""


def loaded(code: str, folder: Path) -> set[str]:
    """Return the modules that are loaded in a process that runs *code* in *folder*."""
    script = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    environ = {"PYTHONPATH": str(HERE.parent), "PATH": ""}
    command = [sys.executable, "-c", script]
    done = subprocess.run(
        command, cwd=folder, env=environ, capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_the_package_loads_next_to_nothing(tmp_path: Path) -> None:
    """Not even asyncio or pydantic: every name is loaded when it is first asked for."""
    bare = loaded("import __future__, importlib, typing", tmp_path)
    ours = loaded("import agentflow, agentflow.agents, agentflow.llm", tmp_path) - bare
    packages = {"agentflow", "agentflow.agents", "agentflow.llm"}

    assert ours == {*packages, "agentflow.loading", "gc"}


def test_the_names_of_a_script_load_no_database_and_no_vendor(tmp_path: Path) -> None:
    """Decorators, `Agent` and `open` need neither SQLAlchemy nor an SDK nor prices."""
    names = loaded(NAMES, tmp_path)

    assert names & (NEVER | {"sqlalchemy", "agentflow.storage"}) == set()
    assert "importlib.metadata" not in names  # pydantic looks for its plugins with the first model


def test_a_plain_run_loads_one_dialect_and_neither_vendors_nor_prices(tmp_path: Path) -> None:
    """A run without a model call pays for no model call."""
    used = loaded(PLAIN, tmp_path)

    assert used & NEVER == set()
    assert "sqlalchemy.dialects.sqlite" in used


def test_dataclasses_are_made_by_our_own_decorator() -> None:
    """The standard one compiles six functions for each class when it is imported."""
    standard = {
        str(path.relative_to(HERE))
        for path in HERE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == "dataclasses"
        if any(name.name == "dataclass" for name in node.names)
    }

    assert standard == {"dataclass.py"}

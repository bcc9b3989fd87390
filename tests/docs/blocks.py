"""The code blocks of a page, run as a reader would: from the top, in one empty folder.

* A ``python`` block that begins with a comment ``# name.py`` is that file; files ``test_….py`` are
  run by pytest at the end of the page. Any other ``python`` block runs as it stands, after those
  above it; what it prints must be what its lines ``#> …`` say, if it has any.
* In a ``console`` block a line ``$ …`` is a command. What `agentflow` and `python` print must have
  the lines below it, in order. ``…`` in such a line stands for anything; ``# exit code 4`` behind
  the command names its code. One with a word in capitals to be filled in is only parsed.
* ``toml``, ``json`` and ``sql`` (SQLite) blocks must be valid; other languages are ``text``.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import io
import json
import re
import shlex
import sqlite3
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import click

import agentflow
from agentflow.cli.main import COMMANDS, cli
from tests.docs.example_process import ROOT, environment

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# ([\w/]+\.py)\n")
_EXIT = re.compile(r"#.*exit code (\d+)")
_BLANK = re.compile(r"\b[A-Z][A-Z_]+\b|…")  # to be filled in by the reader
_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block.

    Attributes:
        line: Where its code begins in the page, from 1.
    """

    language: str
    code: str
    line: int


def blocks_of(text: str) -> list[Block]:
    """Return the fenced blocks of a page."""
    return [
        Block(found[1], found[2], text.count("\n", 0, found.start(2)) + 1)
        for found in _FENCE.finditer(text)
    ]


class Page:
    """One page while its blocks run.

    Args:
        path: The page.
        folder: Where its files and its database are.
    """

    def __init__(self, path: Path, folder: Path) -> None:
        self.path = path
        self.folder = folder
        self.module = ModuleType(f"docs_{path.stem.replace('-', '_')}")
        self._tests: list[str] = []

    def run(self) -> None:
        """Run all blocks."""
        sys.modules[self.module.__name__] = self.module
        for block in blocks_of(self.path.read_text(encoding="utf-8")):
            where = f"{self.path.name}, line {block.line}"
            match block.language:
                case "python":
                    self._python(block)
                case "console":
                    self._console(block)
                case "toml":
                    tomllib.loads(block.code)
                case "json":
                    json.loads(block.code)
                case "sql":
                    self._sql(block.code)
                case "text" | "pgsql":
                    pass  # PostgreSQL's is run by tests/contract/test_postgres_roles.py
                case other:
                    msg = f"{where}: ```{other} is not run by anybody; use console, python or text"
                    raise AssertionError(msg)
        if self._tests:
            self._pytest()

    # --- Python -----------------------------------------------------------------------------

    def _python(self, block: Block) -> None:
        named = _FILE.match(block.code)
        if named is None:
            self._execute(block)
            return
        file = self.folder / named[1]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(block.code, encoding="utf-8")
        if file.name.startswith("test_"):
            self._tests.append(file.name)

    def _execute(self, block: Block) -> None:
        padded = "\n" * (block.line - 1) + block.code  # so that a traceback has the page's lines
        code = compile(padded, str(self.path), "exec", dont_inherit=True)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, self.module.__dict__)  # noqa: S102 -- our own documentation
        said = [line[3:] for line in block.code.splitlines() if line.startswith("#> ")]
        check(said, printed.getvalue(), f"{self.path.name}, line {block.line}", exact=True)

    def _pytest(self) -> None:
        names = {e.value for e in importlib.metadata.entry_points(group="pytest11")}
        plugin = [] if "agentflow.testing.plugin" in names else ["-p", "agentflow.testing.plugin"]
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *plugin]
        self._process([*command, *self._tests], [], 0)

    # --- commands ---------------------------------------------------------------------------

    def _console(self, block: Block) -> None:
        for part in re.split(r"^\$ ", block.code, flags=re.MULTILINE)[1:]:
            command, *output = re.sub(r"\\\n\s*", "", part).splitlines()
            code = _EXIT.search(command)
            expected = [line for line in output if line.strip()]
            self.command(shlex.split(command, comments=True), expected, int(code[1]) if code else 0)

    def command(self, words: list[str], output: list[str], code: int) -> None:
        """Run a command, or check it where it is not for us to run."""
        while words and re.fullmatch(r"\w+=.*", words[0]):
            words = words[1:]  # a setting in front
        program, *arguments = words
        open_ended = any(_BLANK.search(word) for word in arguments)
        if program == "agentflow" and open_ended:
            parse(arguments)
        elif program == "agentflow" and arguments[:1] != ["demo"]:
            self._process([sys.executable, "-m", "agentflow", *arguments], output, code)
        elif program == "agentflow":
            assert arguments[0] in COMMANDS
        elif program == "python" and arguments[0].startswith("examples/"):
            assert (ROOT / arguments[0]).is_file(), arguments[0]  # test_examples.py runs them
        elif program == "python" and not open_ended:
            self._process([sys.executable, *arguments], output, code)
        elif program == "sqlite3":
            self._sql(arguments[-1])
        elif program == "make":
            assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        else:  # about setting up, which a test of the Makefile does
            name = program.removeprefix(".venv/bin/")
            assert name in {"git", "cd", "pip", "python", "python3", "kill", "agentflow"}, program

    def _process(self, command: list[str], output: list[str], code: int) -> None:
        done = subprocess.run(
            command, cwd=self.folder, env=environment(), text=True, timeout=_SECONDS, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        shown = f"{self.path.name}: {shlex.join(command[1:])}\n{done.stdout}"
        assert done.returncode == code, f"exit code {done.returncode}\n{shown}"
        check(output, done.stdout, shown)

    def _sql(self, statement: str) -> None:
        file = self.folder / "agentflow.db"
        asyncio.run(touch(file))
        database = sqlite3.connect(f"file:{file}?mode=ro", uri=True)
        try:
            database.execute(statement).fetchall()
        finally:
            database.close()


async def touch(file: Path) -> None:
    """Make a database where there is none."""
    async with agentflow.connect(f"sqlite:///{file}"):
        pass


def parse(arguments: list[str]) -> None:
    """Check that an `agentflow` command and its options exist, without running it."""
    name, *rest = arguments
    command = cli.get_command(click.Context(cli), name)
    assert command is not None, f"there is no command {name}"
    command.make_context(name, list(rest)).close()


def check(expected: list[str], printed: str, what: str, *, exact: bool = False) -> None:
    """Fail unless *expected* is what was printed, or its lines are among it, in order."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    if exact and expected:
        assert len(lines) == len(expected), f"{what}: printed {lines}"
    rest = iter(lines)
    for line in expected:
        pattern = ".*".join(map(re.escape, line.strip().split("…")))
        found = any(re.fullmatch(pattern, one) for one in rest)
        assert found, f"{what}\n\nexpected: {line}\nprinted:\n{printed}"

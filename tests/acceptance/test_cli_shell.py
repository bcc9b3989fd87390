"""The command line itself: its table of commands, its speed, its documents."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest

from agentflow.cli.main import COMMANDS, cli
from agentflow.cli.reference import reference
from agentflow.settings import environment_with
from tests.acceptance.cli_driver import ROOT, call

HEAVY = {"anthropic", "asyncio", "genai_prices", "openai", "pydantic", "rich", "sqlalchemy"}


@pytest.mark.parametrize("words", [["version"], ["--version"], ["--help"], ["lst"]])
def test_nothing_heavy_is_imported_before_it_is_needed(words: list[str]) -> None:
    """Version and help answer at once: they load neither an SDK nor a database."""
    code = (
        "import sys\nfrom agentflow.cli.main import cli\n"
        f"cli.main({words!r}, standalone_mode=False)\n"
        "print(*{m.partition('.')[0] for m in sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=environment_with(PYTHONPATH=str(ROOT)),
    )

    assert HEAVY & set(done.stdout.splitlines()[-1].split()) == set()


@pytest.mark.parametrize("name", list(COMMANDS))
def test_the_table_of_commands_is_true(name: str) -> None:
    """Its lines are the first lines of the commands' own help, and each takes --json."""
    command = cli.get_command(click.Context(cli), name)

    assert command is not None
    assert command.name == name
    assert (command.help or "").partition("\n")[0] == COMMANDS[name][1]
    under = list(command.commands.values()) if isinstance(command, click.Group) else [command]
    assert all({"--json", "--debug"} <= {o for p in c.params for o in p.opts} for c in under)


def test_the_reference_is_what_the_commands_say() -> None:
    """Run `python -m agentflow.cli.reference > docs/reference/cli.md` after a change."""
    page = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")

    assert page == reference()


def test_help_shows_the_exit_codes() -> None:
    """Scripts need them."""
    done = call("--help")

    assert done.code == 0
    assert "6 replay mismatch" in done.out.replace("\n", " ")


def test_a_command_without_arguments_says_what_it_needs() -> None:
    """One line, not a page."""
    assert call("show").err.startswith("error AF200: missing argument 'RUN'")


def test_version_is_json_too() -> None:
    """For bug reports."""
    assert call("version").out.startswith("agentflow 0.")
    assert sorted(call("version", "--json").json) == ["platform", "python", "sqlite", "version"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_name_the_program(shell: str) -> None:
    """Each shell has one."""
    done = call("completion", shell)

    assert done.code == 0
    assert "_AGENTFLOW_COMPLETE" in done.out


def test_the_program_completes_commands() -> None:
    """What the shell asks is answered with names and help."""
    done = subprocess.run(
        [sys.executable, "-m", "agentflow"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
        env=environment_with(
            PYTHONPATH=str(ROOT),
            _AGENTFLOW_COMPLETE="bash_complete",
            COMP_WORDS="agentflow app",
            COMP_CWORD="1",
        ),
    )

    assert done.stdout.split() == ["plain,approvals", "plain,approve"]


def test_a_closed_pipe_is_no_error() -> None:
    """`agentflow --help | head -1` ends quietly."""
    child = subprocess.Popen(
        [sys.executable, "-m", "agentflow", "--help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment_with(PYTHONPATH=str(ROOT)),
    )
    assert child.stdout is not None
    child.stdout.close()
    assert child.stderr is not None
    with child.stderr:
        said = child.stderr.read()

    assert child.wait() in {0, 141}
    assert said == ""

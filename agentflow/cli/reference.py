"""The reference of the command line, made from the commands' own help.

``python -m agentflow.cli.reference > docs/reference/cli.md`` writes it; a test compares the two.
"""

from __future__ import annotations

import click

from agentflow.cli.main import SECTIONS, cli

_COLUMNS = 96
_HEAD = """\
# The command line

Made by `python -m agentflow.cli.reference` from the commands' own `--help`; do not edit.

Every command takes `--json`: stdout is then `{"as_of", …, "truncated"}` with the `items` of a list,
the `run`, or what else it is about under its own name (`schedule`, `queue`, `budget`, …; `export`
writes a line for each item). An error is `{"error": {"code", "message", "hint", "data"}}` on
stderr. Amounts are exact decimal text,
`null` where they are unknown. Without it, stdout has the result and stderr everything else; an
error is one line, `error AF204: …`, and a hint. `--debug` shows the traceback.

| exit code | means |
|---|---|
| 0 | done |
| 1 | the run failed, or its code must be mended; `check` or `verify` found something |
| 2 | usage: the command, its input, or a file that it names is wrong; nothing was written |
| 3 | no such run or question |
| 4 | the run waits: for an approval, a signal, a timer, an operator |
| 5 | a budget refused the call |
| 6 | the code and the history disagree |
| 7 | another process is the worker of this database |
| 8 | the database: locked, full, damaged, of a newer version, missing |
| 70 | a bug in agentflow |
| 130 | interrupted; the run is kept, and stderr has the command that resumes it |
"""


def reference() -> str:
    """Return the page as Markdown."""
    root = click.Context(
        cli, info_name="agentflow", terminal_width=_COLUMNS, help_option_names=["-h", "--help"]
    )
    parts = [_HEAD, _block("agentflow", cli.get_help(root))]
    for names in SECTIONS.values():
        for name in names:
            command = cli.get_command(root, name)
            if command is None:
                continue
            inner = click.Context(command, parent=root, info_name=name, terminal_width=_COLUMNS)
            parts += _blocks(command, inner)
    return "\n".join(parts)


def _blocks(command: click.Command, context: click.Context) -> list[str]:
    """Return the help of a command and of those under it."""
    blocks = [_block(context.command_path, command.get_help(context))]
    under = command.commands if isinstance(command, click.Group) else {}
    for name, one in under.items():
        inner = click.Context(one, parent=context, info_name=name, terminal_width=_COLUMNS)
        blocks += _blocks(one, inner)
    return blocks


def _block(title: str, text: str) -> str:
    lines = "\n".join(line.rstrip() for line in text.splitlines())
    return f"## {title}\n\n```text\n{lines}\n```\n"


if __name__ == "__main__":
    click.echo(reference(), nl=False)

"""``agentflow completion``: the script that lets a shell complete commands and options."""

from __future__ import annotations

import json

import click
from click.shell_completion import get_completion_class

from agentflow.cli.main import cli
from agentflow.cli.option import json_option
from agentflow.errors import UsageError

SHELLS = ("bash", "zsh", "fish")
_VARIABLE = "_AGENTFLOW_COMPLETE"  # what click looks for when the program is called agentflow


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
@json_option
def completion(*, shell: str, as_json: bool) -> None:
    """Print the shell's completion script.

    \b
    bash: agentflow completion bash > ~/.local/share/bash-completion/completions/agentflow
    zsh:  agentflow completion zsh > "${fpath[1]}/_agentflow"
    fish: agentflow completion fish > ~/.config/fish/completions/agentflow.fish
    """  # noqa: D301 -- click's mark, a backspace
    found = get_completion_class(shell)
    if found is None:
        msg = f"{shell} is not known"
        raise UsageError(msg)
    made = found(cli, {}, "agentflow", _VARIABLE)
    script = made.source_template % made.source_vars()
    click.echo(json.dumps({"shell": shell, "script": script}) if as_json else script)

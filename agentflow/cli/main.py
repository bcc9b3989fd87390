"""The command ``agentflow``: finds the command, runs it, says what went wrong in one line.

Nothing else is imported before it is needed: ``agentflow version`` and ``--help`` know the names
and the first lines of the commands from the table below, and a command's module is imported when
it is invoked.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from agentflow import __version__
from agentflow.cli.exit_code import ExitCode, exit_code_of
from agentflow.cli.suggestion import hint_for
from agentflow.database_url import without_secrets
from agentflow.errors import AgentflowError, RunInterruptedError, UsageError
from agentflow.loading import load

# Name → (module in agentflow.cli, first line of its help). A test keeps the lines true.
SECTIONS: dict[str, dict[str, tuple[str, str]]] = {
    "Run": {
        "run": ("run", "Start a workflow, or resume the run with this id, and follow it."),
        "resume": ("run", "Go on with a run that was recorded, and follow it."),
        "worker": ("worker", "Serve runs of the workflows in these modules until told to stop."),
        "demo": ("demo", "See an agent being killed, resumed, and paid once (20 seconds, no key)."),
    },
    "Look": {
        "list": ("runs", "List runs, newest first."),
        "show": ("show", "Show one run: state, result, cost; its events, steps or messages."),
        "watch": ("watch", "Follow a run that another process works on."),
        "cost": ("cost", "Show what was spent, by run, step, model, tool, user, tag or day."),
        "explain": ("cost", "Show how the cost of a run comes about, line by line."),
        "prices": ("prices", "Show the prices of a model, or check a file of negotiated prices."),
        "budget": (
            "budget",
            "List budgets, set one, or raise one so that runs that wait for it go on.",
        ),
        "cache": (
            "cache",
            "Show what the cache across runs holds and has saved, or forget answers.",
        ),
        "approvals": ("approvals", "List questions that wait for a person."),
        "schedules": ("schedules", "List schedules, add one, pause, trigger or delete it."),
        "limits": ("limits", "List rates of models, or set how often one is asked."),
        "queues": ("queues", "List queues with what is due in them, or set their limits."),
    },
    "Steer": {
        "approve": ("approvals", "Say yes to a question."),
        "deny": ("approvals", "Say no to a question."),
        "signal": ("steer", "Send a message into a run."),
        "cancel": ("steer", "Ask a run to end; its code may still clean up."),
        "pause": ("steer", "Start no new call of a run until it is unpaused."),
        "unpause": ("steer", "Let a paused run, or one with changed code, go on."),
        "retry": ("steer", "Reopen a failed or cancelled run; what is recorded is not paid again."),
    },
    "Trust": {
        "check": ("check", "Find code in workflows that will not replay, without running it."),
        "replay": ("replay", "Run today's code against recorded histories: the deploy gate."),
        "verify": ("audit", "Check the hash chain and every body of a run."),
        "reconcile": (
            "reconcile",
            "Compare the ledger with the provider's own usage and cost reports.",
        ),
        "adjust": ("adjust", "Book an amount that was learned later: a credit, a settled doubt."),
        "export": ("audit", "Write a run with its whole history as JSONL."),
        "import": ("audit", "Read runs that were exported, or archived by `agentflow prune`."),
        "prune": (
            "prune",
            "Forget the histories of runs that ended; their rows, tags and ledgers stay.",
        ),
        "workers": ("worker", "List the processes that work on this database."),
        "doctor": ("doctor", "Check the database and this installation."),
    },
    "Other": {
        "db": ("db", "Copy a database into another one, such as a file into PostgreSQL."),
        "version": ("version", "Print the version."),
        "completion": ("completion", "Print the shell's completion script."),
    },
}
COMMANDS = {name: entry for section in SECTIONS.values() for name, entry in section.items()}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are invoked."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the order of the sections."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command, or None where there is none of that name."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        module = load(f"agentflow.cli.{COMMANDS[cmd_name][0]}")
        suffix = "_command" if not hasattr(module, cmd_name) else ""
        made: click.Command = getattr(module, cmd_name + suffix)
        return made

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that *args* name; a wrong name meets the ones that look like it."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            msg = f"there is no command {name!r}"
            raise UsageError(msg, hint=hint_for(name, COMMANDS, "See `agentflow --help`."))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections without importing any command."""
        del ctx
        width = max(map(len, COMMANDS))
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl(
                    [(name.ljust(width), text) for name, (_, text) in commands.items()]
                )

    def main(  # the base's signature
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,  # noqa: FBT001, FBT002
        windows_expand_args: bool = True,  # noqa: ARG002, FBT001, FBT002
        **extra: Any,
    ) -> Any:
        """Run a command and end the process with its exit code."""
        argv = list(sys.argv[1:] if args is None else args)
        code = self._code(argv, prog_name or "agentflow", complete_var, extra)
        if not standalone_mode:
            return code
        sys.exit(code)

    def _code(
        self, argv: list[str], prog_name: str, complete_var: str | None, extra: dict[str, Any]
    ) -> int:
        shown = argv[: argv.index("--")] if "--" in argv else argv
        stdout = sys.stdout
        try:
            answer = super().main(argv, prog_name, complete_var, standalone_mode=False, **extra)
            sys.stdout.flush()
        except BrokenPipeError:
            # Python would meet the closed pipe again at exit, and complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return ExitCode.PIPE
        except SystemExit as end:  # click's answer to a closed pipe, and to a shell's question
            closed = sys.stdout is not stdout
            return ExitCode.PIPE if closed else int(end.code or 0)
        except (KeyboardInterrupt, click.Abort):
            tell(RunInterruptedError("interrupted", hint=""), as_json="--json" in shown)
            return ExitCode.INTERRUPTED
        except Exception as error:  # noqa: BLE001 -- the last one who can say it in one line
            if "--debug" in shown:
                importlib.import_module("traceback").print_exception(error)
            known = as_known(error)
            tell(known, as_json="--json" in shown)
            return exit_code_of(known) if is_ours(error) else ExitCode.BUG
        return answer if isinstance(answer, int) else ExitCode.DONE


def is_ours(error: BaseException) -> bool:
    """Return whether *error* was meant to be read by the user."""
    return isinstance(error, (AgentflowError, click.ClickException))


def as_known(error: Exception) -> AgentflowError:
    """Return *error* with a code and a hint."""
    if isinstance(error, AgentflowError):
        return error
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        return UsageError("name a command\n" + error.format_message())
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "agentflow"
        message = error.format_message().rstrip(".")
        return UsageError(message[:1].lower() + message[1:], hint=f"See `{path} --help`.")
    message = f"{type(error).__name__}: {error}"
    hint = (
        "This is a bug in agentflow: run the command again with --debug and report the traceback."
    )
    return AgentflowError(message, hint=hint)


def tell(error: AgentflowError, *, as_json: bool) -> None:
    """Write *error* to stderr: one line and a hint, or a JSON object."""
    message, hint = without_secrets(error.message), without_secrets(error.hint)
    if as_json:
        shown = {
            "code": error.code,
            "message": message,
            "hint": hint,
            "data": error.data,
        }
        text = importlib.import_module("json").dumps({"error": shown}, default=str)
        click.echo(text, err=True)
        return
    click.echo(click.style(f"error {error.code}: ", fg="red") + message, err=True)
    if hint:
        click.echo(click.style(" hint: ", fg="cyan") + hint, err=True)


@click.command(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=(
        "Exit codes: 0 done, 1 run failed, 2 usage, 3 not found, 4 waiting (approval, signal, "
        "timer), 5 budget, 6 replay mismatch, 7 owned by another worker, 8 database, "
        "130 interrupted (still resumable)."
    ),
)
@click.version_option(__version__, prog_name="agentflow", message="%(prog)s %(version)s")
def cli() -> None:
    """Durable AI agents: every paid call is recorded once and never paid again.

    A run is named by its id, by any unique prefix of 6 characters or more, or by @last. The
    database is AGENTFLOW_DATABASE_URL, or agentflow.db in this directory.
    """


def main() -> None:
    """Run the command line, in a process of its own."""
    try:
        cli()
    finally:
        # Python looks for garbage through every module when it ends: 0.1 s that nobody needs.
        gc.freeze()


if __name__ == "__main__":
    main()

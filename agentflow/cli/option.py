"""Options that many commands share, and the words in which people give times and spans."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import click

from agentflow.database_url import shown_url
from agentflow.dataclass import dataclass

Command = Callable[..., Any]

_UNIT_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_SPAN = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhdw])")


def filled(_: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """Refuse an empty word where a name is wanted: it is a shell variable that is not set."""
    if any(isinstance(one, str) and not one.strip() for one in _each(value)):
        msg = "it is empty; is a variable not set?"
        raise click.BadParameter(msg, param=parameter)
    return value


def _each(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


@dataclass(frozen=True, slots=True)
class Where:
    """Which runs a command is about.

    Attributes:
        database: URL or file of the database; None = the setting.
        project: Project; None = the setting.
    """

    database: str | None = None
    project: str | None = None

    @property
    def flags(self) -> list[str]:
        """The options that name the same place in another command, for a line that is shown."""
        database = shown_url(self.database) if self.database else None
        pairs = (("--database", database), ("--project", self.project))
        return [word for name, value in pairs if value for word in (name, value)]


class Span(click.ParamType[timedelta]):
    """A span of time: seconds, or numbers with units: ``90``, ``1h30m``, ``7d``."""

    name = "span"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> timedelta:
        """Return a timedelta."""
        if isinstance(value, timedelta):
            return value
        text = str(value).strip()
        if re.fullmatch(r"\d+(\.\d+)?", text):
            return timedelta(seconds=float(text))
        if not re.fullmatch(f"({_SPAN.pattern})+", text):
            self.fail(f"{text!r} is no span of time; write 90, 30s, 1h30m or 7d", param, ctx)
        return timedelta(seconds=sum(float(n) * _UNIT_SECONDS[u] for n, u in _SPAN.findall(text)))


class Since(click.ParamType[datetime | timedelta]):
    """A moment: a span before now (``7d``), or an ISO date or time (local unless it has a zone)."""

    name = "when"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime | timedelta:
        """Return an aware datetime, or the span before now."""
        if isinstance(value, (datetime, timedelta)):
            return value
        try:
            return datetime.fromisoformat(str(value)).astimezone()
        except ValueError:
            pass
        try:
            return Span().convert(value, param, ctx)
        except click.BadParameter:
            self.fail(f"{value!r} is no time; write 7d, 2026-07-01 or an ISO time", param, ctx)


def since_ms(since: datetime | timedelta | None, now_ms: int) -> int | None:
    """Return what `Since` gave as milliseconds since the epoch."""
    if isinstance(since, timedelta):
        return now_ms - int(since.total_seconds() * 1000)
    return None if since is None else int(since.timestamp() * 1000)


def json_option(command: Command) -> Command:
    """Add ``--json`` and ``--debug``, which every command has."""
    command = click.option(
        "--debug", is_flag=True, expose_value=False, help="Show the traceback of an error."
    )(command)
    return click.option(
        "--json",
        "as_json",
        is_flag=True,
        help="Write JSON to stdout, and errors as JSON to stderr.",
    )(command)


def where_options(command: Command) -> Command:
    """Add ``--database`` and ``--project``, ``--json`` and ``--debug``."""

    @functools.wraps(command)
    def wrapped(*args: Any, database: str | None, project: str | None, **options: Any) -> Any:
        return command(*args, where=Where(database, project), **options)

    made: Command = click.option(
        "--project",
        metavar="NAME",
        callback=filled,
        help="Project of the run. [AGENTFLOW_PROJECT; default]",
    )(wrapped)
    made = click.option(
        "--database",
        metavar="URL",
        callback=filled,
        help="Where runs are kept. [AGENTFLOW_DATABASE_URL; sqlite:///agentflow.db]",
    )(made)
    return json_option(made)


def limit_option(default: int) -> Callable[[Command], Command]:
    """Add ``--limit``."""
    return click.option(
        "--limit",
        type=click.IntRange(min=1),
        default=default,
        show_default=True,
        metavar="N",
        help="Show at most N; `truncated` says that there are more.",
    )


def since_option(what: str) -> Callable[[Command], Command]:
    """Add ``--since``."""
    return click.option("--since", type=Since(), metavar="WHEN", help=f"{what} (7d, 2026-07-01).")


def reason_option(command: Command) -> Command:
    """Add ``--reason``."""
    return click.option("--reason", default="", metavar="TEXT", help="Why; recorded.")(command)


def app_option(command: Command) -> Command:
    """Add ``--app``: modules or files that define the workflows."""
    return click.option(
        "--app",
        "apps",
        multiple=True,
        metavar="MODULE_OR_FILE",
        help="Import this module or file, which defines workflows; may be repeated. "
        "[AGENTFLOW_MODULES]",
    )(command)

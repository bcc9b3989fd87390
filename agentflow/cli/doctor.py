"""``agentflow doctor``: is the database whole, and is everything here that is needed?"""

from __future__ import annotations

import asyncio
import importlib.metadata
import importlib.util
import platform
from typing import Any

import click

from agentflow import __version__
from agentflow.cli import session
from agentflow.cli.exit_code import ExitCode
from agentflow.cli.option import Where, where_options
from agentflow.cli.output import iso, now_ms, table, write_json
from agentflow.database_url import shown_url
from agentflow.settings import read_settings
from agentflow.stored import Checkup

_PACKAGES = ("sqlalchemy", "pydantic", "openai", "anthropic", "genai-prices", "click", "rich")
_EXTRAS = {"crypto": "cryptography", "postgres": "psycopg", "tiktoken": "tiktoken"}


@click.command("doctor")
@where_options
def doctor(*, where: Where, as_json: bool) -> int:
    """Check the database and this installation.

    Reports what is wrong and what to do about it: runs that wait for somebody to mend something,
    for example. Of SQLite it reads the whole file (its integrity check); of many workers it looks
    for dead ones, versions that none of them has, runs that are stuck, and clocks apart. Exit
    code 8 says that the database is damaged or of another version; other problems do not change it.
    """
    checkup = asyncio.run(_checkup(where))
    here = installation(where)
    if as_json:
        found = {"database": checkup.facts, "installation": here, "problems": checkup.problems}
        write_json({"as_of": iso(now_ms()), **found, "truncated": False})
    else:
        facts = {**here, **checkup.facts}
        table(("FACT", "VALUE"), ((name, _text(value)) for name, value in facts.items()))
        for problem in checkup.problems:
            click.secho(f"problem: {problem}", fg="red")
        count = len(checkup.problems)
        click.echo(f"{count} problem{'' if count == 1 else 's'}" if count else "all is well")
    # Problems are also things to know (the version of SQLite): only damage stops a script.
    damaged = checkup.facts.get("integrity", ["ok"]) != ["ok"]
    return ExitCode.DATABASE if damaged else ExitCode.DONE


async def _checkup(where: Where) -> Checkup:
    async with session.reading(where) as client:
        found, standing = await client.store.checkup(), await client.store.standing()
    return Checkup(
        facts={**found.facts, **standing.facts}, problems=[*found.problems, *standing.problems]
    )


def installation(where: Where) -> dict[str, Any]:
    """Return facts about this process and what is installed."""
    settings = read_settings().with_flags(database_url=where.database, project=where.project)
    packages = {name: importlib.metadata.version(name) for name in _PACKAGES}
    extras = [name for name, module in _EXTRAS.items() if importlib.util.find_spec(module)]
    return {
        "agentflow": __version__,
        "python": platform.python_version(),
        **packages,
        "extras": extras,
        "database_url": shown_url(settings.database_url),
        "project": settings.project,
        "durability": settings.durability,
        "encrypted": bool(settings.encryption_key),
        "modules": list(settings.modules),
    }


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_text(v)}" for k, v in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else str(value)

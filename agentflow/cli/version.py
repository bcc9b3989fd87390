"""``agentflow version``."""

from __future__ import annotations

import json
import platform
import sqlite3

import click

from agentflow import __version__
from agentflow.cli.option import json_option


@click.command("version")
@json_option
def version(*, as_json: bool) -> None:
    """Print the version."""
    facts = {
        "version": __version__,
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "platform": platform.platform(),
    }
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    else:
        python, sqlite = facts["python"], facts["sqlite"]
        click.echo(f"agentflow {__version__} (Python {python}, SQLite {sqlite})")

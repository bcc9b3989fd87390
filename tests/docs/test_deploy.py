"""The recipes of docs/deploy.md: what they start is a command that exists, with options it has."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Sequence
from datetime import timedelta

import click
import pytest

from agentflow.cli.main import cli
from tests.docs.example_process import ROOT

PAGE = (ROOT / "docs/deploy.md").read_text(encoding="utf-8")
RECIPES: dict[str, tuple[str, Callable[[str], Sequence[str]]]] = {
    "systemd": (r"^ExecStart=APP/\.venv/bin/(.*)$", shlex.split),
    "container": (r"^CMD (\[.*\])$", json.loads),
    "kubernetes": (r"^ +args: \[(.*)\]$", lambda found: [a.strip('"') for a in found.split(", ")]),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_command_of_a_recipe_is_one(recipe: str) -> None:
    """It is parsed as a shell's would be; a stopped worker has longer than its calls."""
    pattern, words = RECIPES[recipe]
    (found,) = re.findall(pattern, PAGE, re.MULTILINE)
    program, name, *arguments = words(found)
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    values = command.make_context(name, list(arguments)).params

    assert program == "agentflow"
    assert values["modules"] == ("my.module",)
    assert values["health"] == 8080
    assert values["grace"] == timedelta(seconds=60)


@pytest.mark.parametrize("limit", [r"^TimeoutStopSec=(\d+)$", r"GracePeriodSeconds: (\d+) "])
def test_a_worker_is_given_longer_to_stop_than_its_calls(limit: str) -> None:
    """Otherwise SIGKILL cuts calls off that still have time."""
    (seconds,) = re.findall(limit, PAGE, re.MULTILINE)
    assert int(seconds) > 60

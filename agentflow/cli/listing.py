"""A group of commands that shows what is there where none is named: ``agentflow queues``."""

from __future__ import annotations

from typing import Any

import click


class ListingGroup(click.Group):
    """A group with a command that need not be named.

    Attributes:
        first: Name of that command.
    """

    def __init__(self, *args: Any, first: str = "list", **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.first = first

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put ``first`` in front of arguments that begin with an option, or are none."""
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = [self.first, *args]
        return super().parse_args(ctx, args)

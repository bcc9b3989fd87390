"""A group of commands that lists where none of them is named: ``agentflow queues``."""

from __future__ import annotations

import click


class ListingGroup(click.Group):
    """A group with a command ``list`` that need not be named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put ``list`` in front of arguments that begin with an option, or are none."""
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)

"""How a run is shown while it goes on: lines in a pipe, a live picture on a terminal.

Everything goes to stderr; stdout is for results.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Protocol, Self

import click
from rich.console import Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from agentflow.cli.chronicle import Chronicle, Line
from agentflow.cli.output import console, iso, now_ms, span
from agentflow.llm.stream import StreamItem

_TAIL_LINES = 4  # of a model's answer in the making
_TAIL_CHARACTERS = 2_000
_CALLS = 6  # that are shown at once
_FRAMES = 8  # a second


class View(Protocol):
    """Shows what happens."""

    def line(self, line: Line) -> None:
        """Show something that happened."""
        ...

    def say(self, text: str) -> None:
        """Show a remark of the command."""
        ...

    def item(self, item: StreamItem) -> None:
        """Show a piece of a model's answer."""
        ...


class PlainView:
    """Lines on stderr.

    Args:
        stream: Whether models' text is written as it comes.
        quiet: Whether lines are left out.
    """

    def __init__(self, *, stream: bool = False, quiet: bool = False) -> None:
        self._stream = stream
        self._quiet = quiet
        self._speaker = ""

    def line(self, line: Line) -> None:
        """Write a line."""
        self.say(f"{line.mark} {line.text}")

    def say(self, text: str) -> None:
        """Write a remark."""
        self._end_speech()
        if not self._quiet:
            click.echo(text, err=True)

    def item(self, item: StreamItem) -> None:
        """Write a piece of text; another speaker begins a new line."""
        if not self._stream:
            return
        if item.key != self._speaker or item.reset:
            self._end_speech()
            self._speaker = item.key
        if item.delta is not None and item.delta.text:
            click.echo(item.delta.text, err=True, nl=False)

    def _end_speech(self) -> None:
        if self._speaker:
            click.echo(err=True)
            self._speaker = ""


class JsonView:
    """One JSON object a line on stdout, for `watch --json`."""

    def line(self, line: Line) -> None:
        """Leave it out: events are written whole."""

    def say(self, text: str) -> None:
        """Leave it out."""

    def item(self, item: StreamItem) -> None:
        """Write a piece of text."""
        self.write(
            {
                "as_of": iso(now_ms()),
                "delta": {
                    "key": item.key,
                    "attempt": item.attempt,
                    "offset": item.offset,
                    "reset": item.reset,
                    "text": item.delta.text if item.delta is not None else "",
                },
            }
        )

    def write(self, value: dict[str, Any]) -> None:
        """Write one line."""
        click.echo(json.dumps(value, ensure_ascii=False))
        sys.stdout.flush()


class LiveView:
    """Lines, and below them what goes on right now."""

    def __init__(self, chronicle: Chronicle) -> None:
        self._chronicle = chronicle
        self._tails: dict[str, str] = {}
        self._spinner = Spinner("dots")
        self._live = Live(
            console=console(err=True),
            get_renderable=self._picture,
            refresh_per_second=_FRAMES,
            transient=True,
        )

    def __enter__(self) -> Self:
        """Begin to draw."""
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the picture away; the lines stay."""
        self._live.stop()

    def line(self, line: Line) -> None:
        """Write a line above the picture."""
        self._live.console.print(Text(f"{line.mark} {line.text}", style=line.style))

    def say(self, text: str) -> None:
        """Write a remark above the picture."""
        self._live.console.print(Text(text))

    def item(self, item: StreamItem) -> None:
        """Take note of a piece of text."""
        before = "" if item.reset else self._tails.get(item.key, "")
        text = item.delta.text if item.delta is not None else ""
        self._tails[item.key] = (before + text)[-_TAIL_CHARACTERS:]

    def _picture(self) -> RenderableType:
        now = now_ms()
        calls = list(self._chronicle.calls.items())
        parts: list[RenderableType] = []
        for key, call in calls[:_CALLS]:
            again = f" attempt {call.attempt}" if call.attempt > 1 else ""
            parts.append(Text(f"  {call.name}{again}  {span(max(0, now - call.since_ms))}", "dim"))
            tail = self._tails.get(key, "").splitlines()[-_TAIL_LINES:]
            parts += [Text(f"    {line}", "italic") for line in tail]
        for gone in self._tails.keys() - {key for key, _ in calls}:
            del self._tails[gone]
        more = f" and {len(calls) - _CALLS} more" if len(calls) > _CALLS else ""
        words = f"{len(calls)} in flight{more}, {self._chronicle.recorded} recorded"
        self._spinner.update(text=Text(words, "cyan"))
        return Group(*parts, self._spinner)


@contextmanager
def view_of(chronicle: Chronicle, *, stream: bool, quiet: bool) -> Iterator[View]:
    """Yield the view that suits where stderr goes."""
    if sys.stderr.isatty() and not quiet:
        with LiveView(chronicle) as live:
            yield live
    else:
        yield PlainView(stream=stream, quiet=quiet)

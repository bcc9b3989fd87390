"""The table of results: docs/crash-table.md, and its place in the README."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.crash import inflight_table
from tests.crash.driver import Result

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "crash-table.md"
BEGIN_POSTGRES, END_POSTGRES = "<!-- postgres -->", "<!-- /postgres -->"
BEGIN, END = "<!-- crash-table -->", "<!-- /crash-table -->"
BEGIN_SHORT, END_SHORT = "<!-- in-flight -->", "<!-- /in-flight -->"
TITLES = {
    "linear": "calls in sequence, two timers",
    "gather": "gather of 5 branches x 2 calls",
    "swap": "gather of 2 branches x 2 calls: answers never swap",
    "task_group": "TaskGroup with a failing tool",
    "race": "race, timeout",
    "approval": "approval, signal",
    "children": "child runs",
    "continue_as_new": "continue-as-new",
    "streaming": "streamed agent with tools",
    "saga": "saga with compensation, `once` + reconcile",
    "cancel": "cancel with clean-up",
    "retry": "retry, back-off",
    "huge": "payloads of 300 KB",
    "reopened": "failed, then retried by a person",
    "edited": "a prompt that every process edits",
    "background": "a model that goes on without a connection",
    "cached": "one question of three runs, asked through the cache",
}


def is_repeat(problem: str) -> bool:
    """Return whether *problem* is a call that was repeated although it should not be."""
    return " acted " in problem and "without an intent" not in problem


def is_unflagged(problem: str) -> bool:
    """Return whether *problem* is a doubtful call that nobody is told of."""
    return "not flagged" in problem


def row(name: str, results: Sequence[Result]) -> str:
    """Return one workload's line."""
    found = [p for r in results for p in r.problems]
    repeated, unflagged = sum(map(is_repeat, found)), sum(map(is_unflagged, found))
    wrong = sum(bool(r.problems) for r in results)
    cells: list[str | int] = [
        TITLES.get(name, name),
        len({kill.point for r in results for kill in r.trial.kills}),
        len(results),
        sum(r.killed for r in results),
        sum(r.calls for r in results),
        sum(r.doubts for r in results),
        wrong,
        repeated,
        unflagged,
    ]
    return f"| {' | '.join(c if isinstance(c, str) else f'{c:,}' for c in cells)} |"


HEAD = (
    "| workload | points | trials | kills | calls | flagged in doubt "
    "| lost or wrong | recorded calls repeated | doubts unflagged |\n"
    "|---|--:|--:|--:|--:|--:|--:|--:|--:|"
)


def table(results: Sequence[Result]) -> str:
    """Return the table as Markdown, a line per workload and a total."""
    by_name: dict[str, list[Result]] = {}
    for result in results:
        by_name.setdefault(result.trial.workload, []).append(result)
    lines = [row(name, found) for name, found in by_name.items()]
    return "\n".join([HEAD, *lines, row("**all**", list(results))])


IN_FLIGHT = (
    "## Calls in flight\n\n"
    "What a kill in the middle of a model call costs. A run of two model calls and a tool works "
    "against a server that speaks each vendor's format, bills every request that it accepts, and "
    "goes on with what it accepted; the process dies in the first call, another one ends the run. "
    "`1`: paid once, and the books are complete. `2, flagged`: sent again, because nobody can ask "
    "that vendor; the first request is in the ledger as in doubt, and its upper bound is counted "
    "in the budget until somebody settles it. `·`: it cannot come to that. Chat Completions are "
    "stored where the request says `store`; they are looked up by the name that it carries."
)


def write(results: Sequence[Result], facts: str, cells: Sequence[Sequence[str]]) -> None:
    """Write the page, and the README's snippets where it has a place for them."""
    text = table(results)
    page = PAGE
    page.parent.mkdir(exist_ok=True)
    page.write_text(
        "# The crash table\n\n"
        "Written by `make crash`. A real process works on each workload and is killed with "
        "SIGKILL: at each hit of each named point, again while it recovers, and at random times; "
        "then it is started again until the run has ended. Effects are counted by another process "
        "that is never killed, and `agentflow.testing.invariants` reads the whole store.\n\n"
        f"{text}\n\n{facts}\n\n{BEGIN_POSTGRES}{_kept(page)}{END_POSTGRES}\n\n"
        f"{IN_FLIGHT}\n\n{inflight_table.table(cells)}\n"
    )
    put(text, BEGIN, END)
    put(inflight_table.short(cells), BEGIN_SHORT, END_SHORT)


def write_postgres(results: Sequence[Result], facts: str) -> None:
    """Write the table of PostgreSQL into its place in the page."""
    text = (
        "## PostgreSQL\n\nThe same workloads, a database each; the dead worker's lease is ended at "
        f"once. One trial in 8 with `synchronous_commit=on`.\n\n{table(results)}\n\n{facts}."
    )
    put(text, BEGIN_POSTGRES, END_POSTGRES, PAGE)


def _kept(page: Path) -> str:
    """Return what the page has of PostgreSQL."""
    before = page.read_text() if page.exists() else ""
    return before.partition(BEGIN_POSTGRES)[2].partition(END_POSTGRES)[0] or "\n"


def put(text: str, begin: str, end: str, page: Path = ROOT / "README.md") -> None:
    """Write *text* between two marks of a page, where it has them."""
    before = page.read_text()
    if begin in before:
        head, _, rest = before.partition(begin)
        page.write_text(f"{head}{begin}\n{text}\n{end}{rest.partition(end)[2]}")

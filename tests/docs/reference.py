"""Reference pages, made from the code that they describe.

``python -m tests.docs.reference`` writes them; test_reference.py compares them. What a column or a
setting is for is said here, once, and a column without its words is an error.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import sqlite3
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import agentflow
from agentflow import errors, settings
from agentflow.history import events
from agentflow.storage.views import VIEWS

PAGES = Path(__file__).resolve().parents[2] / "docs" / "reference"
_MADE = "Made by `python -m tests.docs.reference` from the code; do not edit."


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _table(*head: str) -> list[str]:
    return [_row(*head), "|" + "---|" * len(head)]


def _text(doc: str | None) -> str:
    """Return a docstring as one paragraph of Markdown."""
    return re.sub(r"``(.+?)``", r"`\1`", " ".join((doc or "").split()))


# --- events ---------------------------------------------------------------------------------

_EVENTS_HEAD = f"""\
# Events

{_MADE}

A history is the numbered list of facts of one run. Nothing in it is ever changed; what a run is, is
what its events say. This is format version {events.FORMAT_VERSION}.

Every event has the same envelope:

| field | holds |
|---|---|
| `seq` | its number in the run, from 1, without gaps |
| `time_ms` | when it was recorded, milliseconds since 1970 UTC; never goes back within a run |
| `actor` | who started, signalled, approved, cancelled …, where somebody did |
| `key` | the durable call that it is about: `task path/name#count`, or the key you gave |
| `payload` | one value, where the kind has one: its digest, size, declared type, and body |

*Delivered* marks an outcome: your code sees it, so a drain of the workflow follows it. The other
facts are kept for replay, for people, or for both. Fields of one kind only:

"""

_FIELD_WORDS = {
    ("", "workflow"): "registered name of the workflow",
    ("", "seed"): "what all random draws of the run come from",
    ("", "body"): "what runs the code: `loop` (a workflow); `session` and `temporal` are to come",
    ("", "workflow_version"): "pinned version, or empty",
    ("", "engine_version"): "version of the replay rules",
    ("", "python_version"): "Python that the run began on",
    ("", "logic_flags"): "mended replay rules that this run follows",
    ("", "parent"): "for a child run: the parent's id, and the key of the call that started it",
    ("", "on_parent_end"): "`cancel` or `detach`, for a child run",
    ("", "source_run"): "the run whose history is shared",
    ("", "at_seq"): "the last event that stays in force",
    ("RunReopened", "reason"): "`retry` or `recall`",
    ("ActivityScheduled", "name"): "registered name of the activity",
    ("", "fingerprint"): "hash of what the code asked; compared on every replay",
    ("", "options"): "effect, retry policy, timeouts, policy in doubt, label",
    ("", "needs_approval"): "whether a person must allow this exact call first",
    ("", "attempt"): "number of the attempt, from 1",
    ("", "granted"): "terms that the guards allowed",
    ("", "guard"): "who refused: `pause`, `cancel`, `approval` …",
    ("", "detail"): "why, in words",
    ("", "provider_ref"): "the vendor's own id of the call in flight, where there is one",
    ("", "memo_seq"): "the voided outcome that answered, after a cut",
    ("", "retry_at_ms"): "when the next attempt may start; null = this failure is final",
    ("", "policy"): "what follows: `resume` (fetch the answer by `provider_ref`), `retry`, `fail`, "
    "`ask`, `reconcile`, or `ended` (with the run)",
    ("", "due_ms"): "when it is due, milliseconds since 1970 UTC",
    ("SignalReceived", "name"): "the signal's name",
    ("", "message_id"): "id of the message; one that is sent twice is recorded once",
    ("", "child_id"): "the child's run id",
    ("", "status"): "`completed`, `failed` or `cancelled`",
    ("", "approval_id"): "the question's id",
    ("", "question"): "what the person is asked",
    ("", "call_digest"): "hash of the exact call that a yes would allow; empty for a question",
    ("", "kind"): "`question` (from code), `call` (of a tool), or `doubt` (repeat it?)",
    ("", "decision"): "`approved` or `denied`",
    ("", "reason"): "what was written beside it",
    ("PatchMarked", "name"): "name of the change",
    ("", "taken"): "whether this run takes the new code",
    ("", "attributes"): "names and values that changed",
    ("", "budget"): "the budget",
    ("", "share_percent"): "how much of it is used, in percent",
    ("", "on_mismatch"): "`strict`, `reuse` or `recall`, where a person chose one",
}


def events_page() -> str:
    """Return the page of all kinds of events."""
    comments = _field_comments(inspect.getsource(events))
    lines = [_EVENTS_HEAD.rstrip(), ""]
    for name, cls in events.KINDS.items():
        lines += [f"## {name}", ""]
        delivered = " *Delivered.*" if cls.outcome else ""
        lines += [f"{_text(cls.__doc__)}{delivered}", ""]
        own = [f for f in fields(cls) if f.name not in {e.name for e in fields(events.Event)}]
        if own:
            lines += _table("field", "type", "holds")
            for field in own:
                words = _FIELD_WORDS.get((name, field.name)) or _FIELD_WORDS.get(("", field.name))
                words = words or comments[name, field.name]
                if not words:
                    msg = f"say in {__file__} what {name}.{field.name} is for"
                    raise LookupError(msg)
                lines.append(_row(f"`{field.name}`", f"`{field.type}`", words))
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _field_comments(source: str) -> dict[tuple[str, str], str]:
    """Return the comments behind fields, by class and field."""
    lines = source.splitlines()
    found: dict[tuple[str, str], str] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef):
            for item in node.body:
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                    comment = lines[item.lineno - 1].partition("#")[2].strip()
                    found[node.name, item.target.id] = comment
    return found


# --- errors ---------------------------------------------------------------------------------

_ERRORS_HEAD = f"""\
# Errors

{_MADE}

Every error that agentflow raises is an `agentflow.AgentflowError` with a message of one line, a
stable `code`, a `hint` that says what to do, and `data` for programs. On the command line an error
is `error AF204: …` and a hint; with `--json` it is an object; the exit code is in the
[command line's reference](cli.md).

"""

# For classes without a default: every message brings the hint that fits it, and this is the rest.
_HINTS = {
    "AgentflowError": "See the class that was raised.",
    "Fail": "Your workflow raised it: its message says why.",
    "UsageError": "Mend the call as the message says.",
    "SettingsError": "The message names the setting and what it may be.",
    "RunEndedError": "`agentflow retry RUN` reopens one that failed or was cancelled.",
    "InputError": "The message shows the workflow's signature.",
    "LoadError": "The message names the file; `--debug` shows the traceback.",
    "NotFoundError": "Look with `agentflow list` or `agentflow approvals`; mind the project.",
    "PayloadError": "See its subclasses.",
    "PayloadErased": "Only runs that ended are erased; import an export, if there is one.",
    "HistoryError": "Run `agentflow verify RUN`.",
    "RunFailedError": "`agentflow retry RUN` reopens it just before the failure.",
    "RunCancelledError": "`agentflow retry RUN` reopens it.",
    "RunInterruptedError": "The message has the command that resumes it.",
    "ActivityError": "`error.failure` has type, message and traceback of the last attempt.",
    "InDoubtError": "Find out what happened outside, then retry the run or let it fail.",
    "ApprovalDeniedError": "The reason is in the message; code may catch it.",
    "ActivityTimeoutError": "Raise `timeout`, `heartbeat` or `total_timeout`, or split the work.",
    "NonRetryableError": "Your activity raised it: its message says why.",
    "ResponseLostError": "The next attempt asks, and pays, anew.",
    "RetryLater": "Seen only when no attempt is left: raise the number of attempts.",
    "ProviderError": "The message is the vendor's; `status` and `request_id` are in `data`.",
    "StoreError": "Run `agentflow doctor`.",
    "FencedError": "Nothing: the other worker goes on.",
}


def errors_page() -> str:
    """Return the page of all errors."""
    tree = textwrap.dedent((errors.__doc__ or "").split("\n\n")[1])
    lines = [_ERRORS_HEAD.rstrip(), "", "```text", *tree.splitlines(), "```", ""]
    lines += _table("code", "error", "cause", "hint")
    for cls in sorted(_all(errors.AgentflowError), key=lambda c: c.code):
        hint = cls.default_hint or _HINTS.get(cls.__name__, "Do what the message says.")
        cause = _text((cls.__doc__ or "").split("\n\n")[0])
        lines.append(_row(cls.code, f"`{cls.__name__}`", cause, hint))
    return "\n".join(lines) + "\n"


def _all(cls: type[errors.AgentflowError]) -> Iterator[type[errors.AgentflowError]]:
    yield cls
    for child in cls.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from _all(child)


# --- settings -------------------------------------------------------------------------------

_SETTINGS_HEAD = f"""\
# Settings

{_MADE}

A setting comes from the first place that has it: an argument or a flag, the environment, the
section `[tool.agentflow]` of the nearest `pyproject.toml` (this directory or one above it), the
default. A name in that section that does not exist is an error, so that a typo is not ignored.

"""
_SETTINGS_FOOT = """\

An example of the file:

```toml
[tool.agentflow]
database_url = "sqlite:///var/runs.db"
project = "shop"
modules = ["shop/agents.py"]
```

**Secrets.** The values of environment variables whose names end in `_API_KEY`, `_TOKEN`, `_SECRET`,
`_PASSWORD` or `_ENCRYPTION_KEY` are replaced in everything before it is written: arguments,
results, errors, messages. Values of fewer than 8 characters are left alone.

**Models.** The adapters take their keys and addresses as the vendors' own SDKs do:

| variable | for |
|---|---|
| `OPENAI_API_KEY`, `OPENAI_BASE_URL` | `openai:` and `openai-chat:` |
| `ANTHROPIC_API_KEY`, `ANTHROPIC_BASE_URL` | `anthropic:` |
| `HTTPS_PROXY`, `NO_PROXY` | both |
"""


def settings_page() -> str:
    """Return the page of all settings."""
    told = _attributes(settings.Settings.__doc__ or "")
    lines = [_SETTINGS_HEAD.rstrip(), ""]
    lines += _table("`[tool.agentflow]`", "environment", "default", "meaning")
    for field in fields(settings.Settings):
        if field.name == "secrets":
            continue
        is_table = field.name in settings.TABLES
        default = "none" if is_table or field.default in {"", (), None} else field.default
        name = "" if is_table else f"`AGENTFLOW_{field.name.upper()}`"
        lines.append(_row(f"`{field.name}`", name, f"`{default}`", told[field.name]))
    return "\n".join(lines) + "\n" + _SETTINGS_FOOT


def _attributes(doc: str) -> dict[str, str]:
    """Return the descriptions of a Google docstring's Attributes section."""
    section = textwrap.dedent(doc.split("Attributes:\n", 1)[1])
    found: dict[str, str] = {}
    for entry in re.split(r"\n(?=\w+:)", section.strip()):
        name, _, text = entry.partition(":")
        found[name.strip()] = _text(text)
    return found


# --- SQL views ------------------------------------------------------------------------------

_VIEWS_HEAD = """\
The tables of a database may change with any version; these views do not. A column may be added,
none is removed or changes its meaning. Any SQL tool may read them, also while a worker runs:

```console
$ sqlite3 -readonly agentflow.db "SELECT run_id, cost_usd FROM agentflow_cost_by_run"
```

Times are text, ISO 8601 in UTC with milliseconds. Every `…_usd` is exact decimal text, made with
integer arithmetic; cast it to a decimal type, not to a float. NULL is unknown, never zero. Bodies
of payloads are not in the views: they are compressed, and encrypted where a key is set;
`agentflow show` and `agentflow export` read them.
"""

_VIEW_WORDS = {
    "agentflow_runs": "One row for each run.",
    "agentflow_events": "One row for each event of each run, in the order of `seq`.",
    "agentflow_attempts": (
        "One row for each physical attempt that can cost money: every request to a model, failed "
        "ones too, and every attempt of a tool that has a `cost_usd`."
    ),
    "agentflow_cost_lines": "What an attempt was billed for: one row for each unit.",
    "agentflow_cost_by_run": "The cost of each run, without its child runs.",
    "agentflow_cost_by_day": "The cost of each day (UTC) on which attempts were made.",
}
_COLUMN_WORDS = {
    "project": "scope of run ids",
    "run_id": "the run",
    "workflow": "the workflow's registered name",
    "status": "`pending`, `running`, `waiting`, `paused`, `needs_code`, `needs_version`, "
    "`quarantined`, `completed`, `failed` or `cancelled`",
    "wait": "what it waits for, in words",
    "error": "one line, where it failed or is parked",
    "queue": "its queue",
    "tags": "its tags, a JSON array",
    "parent_run_id": "the run that started it, for a child run",
    "parent_key": "the call of that run that did",
    "created_at": "when it was started",
    "updated_at": "when it last changed",
    "ended_at": "when it ended",
    "events": "number of its events",
    "seq": "the event's number in its run, from 1, without gaps",
    "kind": "the event's [kind](events.md)",
    "time": "when it happened",
    "actor": "who did it, where somebody did",
    "key": "the durable call that it belongs to",
    "data": "facts of this kind only, a JSON object; `payload` is digest, size, type, parts",
    "hash": "hash of this event and of the hash before it, hex",
    "n": "number of the attempt within the run's ledger, from 1",
    "attempt": "number of the attempt of its call, from 1",
    "name": "the agent's or tool's name",
    "model_asked": "`provider:name` as asked; empty for a tool",
    "model_served": "`provider:name` as the vendor says that it served",
    "cost_status": "`priced`, `partial`, `unpriced`, `unknown_usage`, `not_billed` or `cached`; "
    "see [concepts](../concepts.md#the-ledger)",
    "cost_usd": "what it cost, in US dollars",
    "input_tokens": "input tokens, cached ones included",
    "output_tokens": "output tokens, reasoning included",
    "cache_read_tokens": "of the input, those that were read from the vendor's cache",
    "request_id": "the vendor's id of the HTTP request",
    "response_id": "the vendor's id of the answer",
    "tier": "service tier as served",
    "latency_ms": "from send to outcome, milliseconds",
    "price_source": "where the prices come from",
    "price_version": "version of that source",
    "price_date": "day from which the price is in force, if known",
    "price_reason": "why the status is not `priced`",
    "line": "number of the line within the attempt, from 0",
    "unit": "what is billed: `input`, `cache_read`, `output`, `web_search`, `tool` …",
    "quantity": "number of units: tokens, searches, calls",
    "unit_price_usd": "US dollars per one unit",
    "note": "rules that were applied: tier, region, batch",
    "list_price_usd": "what one unit costs by the public list, at the standard tier",
    "adjustments": "of the amount, how many parts were booked by a person",
    "day": "the day, UTC, as `2026-11-23`",
    "attempts": "number of attempts",
    "known_attempts": "of those, the ones whose cost is known in full",
}
_OTHER_WORDS = {
    ("agentflow_attempts", "status"): "`ok`, `error`, `in_doubt` or `cancelled`",
    (
        "agentflow_attempts",
        "kind",
    ): "`model`, `tool`, or `adjustment`: an amount that somebody booked",
    ("agentflow_attempts", "name"): "the agent's or tool's name; an adjustment's source",
    ("agentflow_attempts", "price_reason"): "why the status is not `priced`; why it was booked",
    ("agentflow_attempts", "error"): "one line, where it failed",
    ("agentflow_cost_by_run", "cost_usd"): "the known part; complete if all attempts are known",
    ("agentflow_cost_by_day", "cost_usd"): "the known part; complete if all attempts are known",
}


def views_page() -> str:
    """Return the page of the views, with the columns that a new database really has."""
    lines = ["# SQL views", "", _MADE, "", _VIEWS_HEAD]
    for view, columns in _columns().items():
        lines += [f"## {view}", "", _VIEW_WORDS[view], "", *_table("column", "holds")]
        for name in columns:
            words = _OTHER_WORDS.get((view, name)) or _COLUMN_WORDS.get(name)
            if words is None:
                msg = f"say in {__file__} what the column {view}.{name} holds"
                raise LookupError(msg)
            lines.append(_row(f"`{name}`", words))
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _columns() -> dict[str, list[str]]:
    """Return the columns of each view of a new database."""

    async def make(file: Path) -> None:
        async with agentflow.connect(f"sqlite:///{file}"):
            pass

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "new.db"
        asyncio.run(make(file))
        database = sqlite3.connect(file)
        try:
            return {
                view: [str(row[1]) for row in database.execute(f"PRAGMA table_info({view})")]
                for view in VIEWS
            }
        finally:
            database.close()


MAKERS: dict[str, Callable[[], str]] = {
    "events.md": events_page,
    "errors.md": errors_page,
    "settings.md": settings_page,
    "sql-views.md": views_page,
}


def main() -> None:
    """Write all pages."""
    PAGES.mkdir(parents=True, exist_ok=True)
    for name, make in MAKERS.items():
        (PAGES / name).write_text(make(), encoding="utf-8")
        sys.stdout.write(f"docs/reference/{name}\n")


if __name__ == "__main__":
    main()

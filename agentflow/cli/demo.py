"""``agentflow demo``: an agent is killed in the middle, resumed, and paid once.

The real openai SDK talks to a server on 127.0.0.1 that says what a model would say. The agent runs
in a process of its own, which gets SIGKILL while its second model call is in flight; the same
command is then run again. What is counted is counted outside of both processes.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.panel import Panel
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from agentflow.cli import session
from agentflow.cli.ending import cost_of
from agentflow.cli.exit_code import ExitCode
from agentflow.cli.option import Where, json_option
from agentflow.cli.output import cost_json, cost_line, iso, now_ms, show, write_json
from agentflow.dataclass import dataclass
from agentflow.errors import AgentflowError
from agentflow.history import events as ev
from agentflow.ledger.entries import usd
from agentflow.ledger.reports import CostGroup, LedgerRow
from agentflow.settings import environment_with

AGENT = Path(__file__).with_name("demo_agent.py")
RAN = "tools.log"
RUN_ID = "demo"
QUESTION = "Why did checkout fail at 14:02?"
_WAIT_SECONDS = (
    30.0  # a slow machine imports an SDK for some seconds; beyond this something is wrong
)
_LOOK_SECONDS = 0.02
_HANG_SECONDS = 60.0  # the second model call, the first time it is asked: the kill comes before

SCRIPT = {
    "turns": [
        {
            "calls": [
                ["search_logs", {"service": "checkout", "words": "timeout"}],
                ["read_metrics", {"service": "checkout-db"}],
            ],
            "input_tokens": 41_230,
            "output_tokens": 412,
        },
        {
            "calls": [
                [
                    "open_ticket",
                    {"title": "checkout: pool exhausted", "text": "20 of 20 connections in use."},
                ]
            ],
            "input_tokens": 46_815,
            "output_tokens": 388,
            "faults": [{"delay_seconds": _HANG_SECONDS}, None],
        },
        {
            "text": "The database pool was exhausted: 20 of 20 connections. I opened OPS-4711.",
            "input_tokens": 47_502,
            "output_tokens": 96,
        },
    ]
}


@click.command("demo")
@click.option("--keep", is_flag=True, help="Keep the folder with the database, to look around.")
@json_option
def demo(*, keep: bool, as_json: bool) -> int:
    """See an agent being killed, resumed, and paid once (20 seconds, no key)."""
    folder = Path(tempfile.mkdtemp(prefix="agentflow-demo-"))
    try:
        with ended_by_signal():
            _play(folder, Stage(quiet=as_json), keep=keep)
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
    return ExitCode.DONE


@contextmanager
def ended_by_signal() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, so that no process is left behind."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Stage:
    """Where the demo speaks.

    Args:
        quiet: Say nothing on the way; write JSON at the end.
    """

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet
        self._lock = threading.Lock()
        self._quoted = ""
        self._news = threading.Condition()

    def say(self, renderable: Any = "") -> None:
        """Show something."""
        if not self.quiet:
            with self._lock:
                show(renderable)
                sys.stdout.flush()

    def step(self, number: int, text: str) -> None:
        """Say what comes next."""
        self.say()
        self.say(Text.assemble((f" {number} ", "reverse bold"), " ", (text, "bold")))

    def quote(self, line: str) -> None:
        """Show a line of a child process."""
        self.say(Text.assemble(("   │ ", "dim"), line.rstrip()))
        with self._news:
            self._quoted += line
            self._news.notify_all()

    def wait_for(self, words: str) -> None:
        """Wait until a child process has said *words*: it tells a moment after it is recorded."""
        with self._news:
            self._news.wait_for(lambda: words in self._quoted, timeout=2.0)


def _play(folder: Path, stage: Stage, *, keep: bool) -> None:
    stage.say(Panel(_code(), title="the agent: ordinary code", title_align="left", width=100))
    with model_server(folder) as server:
        stage.step(1, "It runs in a process of its own (real openai SDK, server on 127.0.0.1).")
        with agent_process(folder, server, stage) as child:
            wait_until(lambda: child.poll() is not None or counted(server)["count"] > 1)
            stage.wait_for("search_logs")
            stage.step(
                2, f"kill -9 {child.pid}: both tools have answered, model call 2 is in flight."
            )
            child.kill()
            child.wait()
        killed_ms = now_ms()
        stage.step(3, "The same command again, in a new process.")
        with agent_process(folder, server, stage) as child:
            wait_until(lambda: child.poll() is not None)
            if child.returncode != 0:
                raise AgentflowError(f"the resumed agent ended with exit code {child.returncode}")
        ran = (folder / RAN).read_text(encoding="utf-8").split()
        facts = asyncio.run(_facts(folder, killed_ms, counted(server), ran))
    if stage.quiet:
        write_json({"as_of": iso(now_ms()), **facts.as_json(), "truncated": False})
        return
    stage.step(4, "What happened, as the event log and the ledger have it.")
    stage.say()
    stage.say(_timeline(facts))
    stage.say()
    stage.say(_sums(facts))
    if keep:
        stage.say(
            f"\nLook around: cd {folder}; agentflow show {RUN_ID} --messages --database demo.db"
        )


def _code() -> Syntax:
    text = AGENT.read_text(encoding="utf-8").partition("# [shown\n")[2].partition("# shown]")[0]
    return Syntax(text.rstrip(), "python", theme="ansi_dark", background_color="default")


# -- processes


@contextmanager
def model_server(folder: Path) -> Iterator[str]:
    """Yield the address of a model vendor on this machine; it ends with the block."""
    script = folder / "script.json"
    script.write_text(json.dumps(SCRIPT), encoding="utf-8")
    command = ["-m", "agentflow.testing.loopback", "--script", str(script), "--with-stdin"]
    child = subprocess.Popen(  # noqa: S603 -- our own module
        [sys.executable, *command],
        stdin=subprocess.PIPE,  # it ends when this process does, however that ends
        stdout=subprocess.PIPE,
        env=environment_with(PYTHONPATH=_root()),
        text=True,
    )
    with ended(child):
        address = child.stdout.readline().strip() if child.stdout else ""
        if not address:
            msg = "the model server did not start"
            raise AgentflowError(msg)
        yield address


@contextmanager
def agent_process(folder: Path, server: str, stage: Stage) -> Iterator[subprocess.Popen[str]]:
    """Yield a process in which the agent runs; it ends with the block."""
    target = "agentflow.cli.demo_agent:investigate"
    words = ["run", target, QUESTION, "--id", RUN_ID, "--database", "demo.db"]
    stage.quote(f"$ agentflow run demo_agent.py:investigate {QUESTION!r} --id {RUN_ID}")
    child = subprocess.Popen(  # noqa: S603 -- our own module
        [sys.executable, "-m", "agentflow", *words],
        cwd=folder,
        env=environment_with(
            OPENAI_BASE_URL=f"{server}/v1",
            OPENAI_API_KEY="sk-no-key-is-needed",
            NO_PROXY="127.0.0.1",
            no_proxy="127.0.0.1",
            PYTHONPATH=_root(),
            PYTHONIOENCODING="utf-8",
        ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        bufsize=1,
    )
    reader = threading.Thread(target=_quote_all, args=(child, stage), daemon=True)
    reader.start()
    with ended(child):
        yield child
        reader.join(_WAIT_SECONDS if child.poll() is not None else 0)


def _quote_all(child: subprocess.Popen[str], stage: Stage) -> None:
    for line in child.stdout or ():
        stage.quote(line)


def _root() -> str:
    """Return the folder that holds the package: a child must find the same one."""
    return str(Path(__file__).resolve().parents[2])


@contextmanager
def ended(child: subprocess.Popen[str]) -> Iterator[None]:
    """End *child* with the block, whatever happens in it."""
    try:
        yield
    finally:
        if child.poll() is None:
            child.kill()
        child.wait()
        if child.stdin is not None:
            child.stdin.close()


def counted(server: str) -> dict[str, Any]:
    """Return what the server has counted: every request, answered or cut off."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{server}/__requests", timeout=10) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait until *condition* holds.

    Raises:
        AgentflowError: it did not in time.
    """
    deadline = time.monotonic() + _WAIT_SECONDS
    pause = threading.Event()
    while not condition():
        if time.monotonic() > deadline:
            msg = f"the demo did not get on within {_WAIT_SECONDS:.0f} seconds"
            raise AgentflowError(msg)
        pause.wait(_LOOK_SECONDS)


# -- facts


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What became of one call of the agent.

    Attributes:
        what: The call in words.
        first: What the first process did with it.
        second: What the second process did with it.
        cost: What the ledger has for it.
    """

    what: str
    first: str
    second: str
    cost: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the report says.

    Attributes:
        calls: Each call.
        recorded: Number of events that were committed before the kill.
        replayed: Number of results that were replayed.
        paid: Sum of the ledger.
        saved_pico_usd: What the replayed results had cost.
        requests: What the server counted.
        tools: What tools really ran, in order.
        in_doubt: Number of attempts in doubt.
    """

    calls: list[Call]
    recorded: int
    replayed: int
    paid: CostGroup
    saved_pico_usd: int
    requests: dict[str, Any]
    tools: list[str]
    in_doubt: int

    def as_json(self) -> dict[str, Any]:
        """Return them as JSON values."""
        answered = [r for r in self.requests["requests"] if r["outcome"] == "answered"]
        return {
            "run_id": RUN_ID,
            "events_before_kill": self.recorded,
            "results_replayed": self.replayed,
            "requests": self.requests["count"],
            "requests_answered": len(answered),
            "tools_run": self.tools,
            "in_doubt": self.in_doubt,
            "paid": cost_json(self.paid),
            "saved_usd": f"{usd(self.saved_pico_usd):f}",
        }


async def _facts(folder: Path, killed_ms: int, requests: dict[str, Any], tools: list[str]) -> Facts:
    async with session.reading(Where(str(folder / "demo.db"))) as client:
        handle = await client.get(RUN_ID)
        history = await handle.history()
        ledger = await client.store.ledger(client.project, RUN_ID)
        paid = await cost_of(client, RUN_ID)
    before = [e for e in history if e.time_ms <= killed_ms]
    free = {e.key for e in before if isinstance(e, ev.ActivityCompleted)}
    saved = [r.record.priced.amount_pico_usd or 0 for r in ledger if r.key in free]
    return Facts(
        calls=_calls(history, ledger, killed_ms),
        recorded=len(before),
        replayed=len(free),
        paid=paid,
        saved_pico_usd=sum(saved),
        requests=requests,
        tools=tools,
        in_doubt=sum(isinstance(e, ev.ActivityInDoubt) for e in history),
    )


def _calls(history: tuple[ev.AnyEvent, ...], ledger: list[LedgerRow], killed_ms: int) -> list[Call]:
    asked = [e for e in history if isinstance(e, ev.ActivityScheduled)]
    model_calls = 0
    calls: list[Call] = []
    for event in asked:
        is_model = event.name == "llm_call"
        model_calls += is_model
        mine = [e for e in history if e.key == event.key]
        calls.append(
            Call(
                what=f"model call {model_calls}" if is_model else f"tool {event.name}",
                first=_by_first(mine, killed_ms),
                second=_by_second(mine, killed_ms),
                cost=_cost_of_call([r for r in ledger if r.key == event.key]),
            )
        )
    return calls


def _by_first(mine: list[ev.AnyEvent], killed_ms: int) -> str:
    early = [e for e in mine if e.time_ms <= killed_ms]
    if any(isinstance(e, ev.ActivityCompleted) for e in early):
        return "done, recorded"
    return "in flight: killed" if any(isinstance(e, ev.ActivityStarted) for e in early) else ""


def _by_second(mine: list[ev.AnyEvent], killed_ms: int) -> str:
    if any(isinstance(e, ev.ActivityCompleted) and e.time_ms <= killed_ms for e in mine):
        return "replayed from the log, free"
    doubt = any(isinstance(e, ev.ActivityInDoubt) for e in mine)
    return "marked in doubt, sent once more" if doubt else "done, recorded"


def _cost_of_call(rows: list[LedgerRow]) -> str:
    amounts = [row.record.priced.amount_pico_usd for row in rows]
    known = [amount for amount in amounts if amount is not None]
    if not amounts:
        return "-"
    text = f"${usd(sum(known)):f}" if known else "unknown"
    return text if len(known) == len(amounts) else f"≥ {text}"


# -- the report


def _timeline(facts: Facts) -> Table:
    table = Table(box=None, padding=(0, 3, 0, 0), header_style="bold")
    for title in ("", "first process", "second process"):
        table.add_column(title)
    table.add_column("ledger", justify="right")
    for call in facts.calls:
        styles = {"in": "red", "do": "green", "re": "cyan", "ma": "magenta"}
        table.add_row(
            call.what,
            Text(call.first or "-", styles.get(call.first[:2], "dim")),
            Text(call.second, styles.get(call.second[:2], "dim")),
            call.cost,
        )
    return table


def _sums(facts: Facts) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 3, 0, 0))
    shown = facts.as_json()
    cut = shown["requests"] - shown["requests_answered"]
    saved = f"${usd(facts.saved_pico_usd):f}"
    again = f"${usd(facts.paid.amount_pico_usd + facts.saved_pico_usd):f}"
    rows = (
        ("recorded before the kill", f"{facts.recorded} events, {facts.replayed} results"),
        ("replayed free", f"{facts.replayed} results: 0 requests, $0"),
        ("requests the server saw", f"{shown['requests']}, {cut} of them cut off by the kill"),
        ("tools that really ran", f"{len(facts.tools)}, each once: {', '.join(facts.tools)}"),
        (
            "in doubt",
            f"{facts.in_doubt} call: its first try may be billed, so it is not called free",
        ),
        ("paid", cost_line(facts.paid)),
        ("starting over would cost", f"≥ {again}"),
    )
    for name, value in rows:
        table.add_row(Text(name, "bold"), value)
    table.add_row(Text("saved", "bold green"), Text(saved, "bold green"))
    return table

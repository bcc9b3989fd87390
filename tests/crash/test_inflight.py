"""Model calls in flight when their process is killed: paid once where the vendor allows it."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

import agentflow
from agentflow.history import events as ev
from agentflow.llm.stream import Delta, StreamItem
from agentflow.testing.facts import RunFacts, read_file
from agentflow.testing.invariants import problems
from agentflow.testing.loopback import Answer, Fault, LoopbackServer, Seen
from tests.crash.inflight import KINDS, TURNS, Life, live, processes, weighing

pytestmark = [pytest.mark.crash, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
SENT = "sent"  # not a point of ours: the vendor has the request, and has not answered
PAUSE_SECONDS = 0.003  # between the events of a stream
_HOUR_MS = 3_600_000
_LIFE_SECONDS = 25.0


@dataclass(kw_only=True)
class Trial:
    """A run, the processes that died over it, and what is left.

    Attributes:
        posts: Number of paid requests; 2 are needed.
        billed_tokens: What the vendor bills.
        facts: What the store has.
        shown: Pieces that a watcher in another process saw, in order.
    """

    posts: int
    billed_tokens: int
    facts: RunFacts
    problems: list[str]
    shown: list[StreamItem] = field(default_factory=list)

    @property
    def doubts(self) -> list[str]:
        """What was done about each doubtful attempt."""
        return [e.policy for e in self.facts.events if isinstance(e, ev.ActivityInDoubt)]

    @property
    def booked_tokens(self) -> int:
        """What the ledger knows of."""
        return sum((a["input_tokens"] or 0) + (a["output_tokens"] or 0) for a in self.ledger)

    @property
    def unknown(self) -> int:
        """How many model calls the ledger has whose usage nobody knows."""
        return sum(a["cost_status"] == "unknown_usage" for a in self.ledger)

    @property
    def ledger(self) -> Sequence[Any]:
        """The model calls in the ledger."""
        return [a for a in self.facts.attempts if a["kind"] == "model"]


Kill = tuple[str, int]
Killed = Callable[..., Any]


@pytest.fixture(scope="module")
def forks() -> Iterator[Any]:
    """What makes processes; the server that forks them needs to find the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        yield processes()


async def killed(forks: Any, folder: Path, kind: str, *kills: Kill, stream: bool) -> Trial:
    """Start a run, work on it with processes that die at *kills*, and with one that lives."""
    file = folder / "r.db"
    async with agentflow.connect(f"sqlite:///{file}") as client:
        run = await client.start(weighing, kind, id="r")
        if stream:
            until_ms = int(time.time() * 1000) + _HOUR_MS
            await client.store.watch((await run.info()).pk, until_ms)
    waits = any(point == SENT for point, _ in kills)

    def script(seen: Seen) -> Answer:
        delay = 1.0 if waits and seen.number == 1 else 0.0
        pause = PAUSE_SECONDS if stream or kind == "background" else 0.0
        return replace(TURNS[seen.turns], fault=Fault(delay_seconds=delay, pause_seconds=pause))

    with LoopbackServer(script) as server:
        life = Life(url=server.url, database=str(file), kind=kind)
        for point, hit in kills:
            _die(forks, replace(life, point=point, hit=hit), server)
        last = forks.Process(target=live, args=(life,))
        last.start()
        last.join(_LIFE_SECONDS)
        assert last.exitcode == 0
        return Trial(
            posts=len(server.requests),
            billed_tokens=server.billed_tokens,
            facts=read_file(file).runs[0],
            problems=problems(file),
            shown=_shown(file),
        )


def _die(forks: Any, life: Life, server: LoopbackServer) -> None:
    process = forks.Process(target=live, args=(life,))
    process.start()
    if life.point == SENT:
        while not server.requests and process.is_alive():
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
    process.join(_LIFE_SECONDS)
    assert process.exitcode == -signal.SIGKILL, "it did not get there"


def _shown(file: Path) -> list[StreamItem]:
    with closing(sqlite3.connect(file)) as db:
        rows = [json.loads(row[0]) for row in db.execute("SELECT item FROM stream_items")]
    return [
        StreamItem(**{**row, "delta": Delta(**row["delta"]) if row["delta"] else None})
        for row in rows
    ]


def assert_sound(trial: Trial) -> None:
    """It ended, its books and history verify, and nobody saw a piece twice."""
    assert trial.facts.row["status"] == "completed"
    assert trial.problems == []
    attempts: dict[tuple[str, int], list[StreamItem]] = defaultdict(list)
    for item in trial.shown:
        attempts[item.key, item.attempt].append(item)
    for (_, number), items in attempts.items():
        pieces = [i for i in items if not i.reset]
        assert [i.offset for i in pieces] == list(range(len(pieces)))
        assert [i.reset for i in items[:1]] == [number > 1]
    # What was shown just before a kill may not have got out; the attempt that came through has.
    last = [_text(attempts[place]) for place in dict(sorted(attempts)).items()]
    assert not last or TURNS[1].text in last


def _text(items: Sequence[StreamItem]) -> str:
    return "".join(i.delta.text for i in items if i.delta is not None)


WHOLE_OF_BACKGROUND = [
    ("llm.after_ref", 1),
    ("llm.after_ref", 2),
    ("llm.after_response", 1),
    ("outcome.before_delivery", 3),  # of the second call: the tool's is the one between
]
STREAM_OF_BACKGROUND = [*WHOLE_OF_BACKGROUND, ("stream.after_delta", 3), ("stream.after_delta", 9)]


@pytest.mark.parametrize(
    ("stream", "kill"),
    [
        *((False, kill) for kill in WHOLE_OF_BACKGROUND),
        *((True, kill) for kill in STREAM_OF_BACKGROUND),
    ],
)
async def test_what_is_known_to_the_vendor_is_fetched(
    forks: Any, tmp_path: Path, *, stream: bool, kill: Kill
) -> None:
    """In the background, from the id on: nothing is paid again, and the books are complete."""
    trial = await killed(forks, tmp_path, "background", kill, stream=stream)

    assert_sound(trial)
    assert trial.posts == 2
    assert trial.doubts == ["resume"]
    assert (trial.booked_tokens, trial.unknown) == (trial.billed_tokens, 0)
    assert [a["status"] for a in trial.ledger] == ["ok", "ok"]


@pytest.mark.parametrize("stream", [False, True])
async def test_killed_again_while_it_is_fetched(
    forks: Any, tmp_path: Path, *, stream: bool
) -> None:
    """However often: the id stays known."""
    kills = [("llm.after_ref", 1), ("llm.before_resume", 1), ("llm.after_response", 1)]
    trial = await killed(forks, tmp_path, "background", *kills, stream=stream)

    assert_sound(trial)
    assert trial.posts == 2
    assert trial.doubts == ["resume"] * 3
    assert (trial.booked_tokens, trial.unknown) == (trial.billed_tokens, 0)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_id_that_nobody_wrote_down_is_a_doubt(
    forks: Any, tmp_path: Path, *, stream: bool
) -> None:
    """After send, before id: sent once more, flagged, and unknown in the books."""
    kill = ("progress.before_delivery", 1)
    trial = await killed(forks, tmp_path, "background", kill, stream=stream)

    assert_sound(trial)
    assert trial.posts == 3
    assert trial.doubts == ["retry"]
    assert trial.unknown == 1
    assert trial.booked_tokens < trial.billed_tokens


@pytest.mark.parametrize("kind", KINDS)
async def test_what_was_not_sent_is_paid_once(forks: Any, tmp_path: Path, kind: str) -> None:
    """Before send: flagged, because nobody can tell, and paid once."""
    kill = ("llm.before_send", 1)
    trial = await killed(forks, tmp_path, kind, kill, stream=False)

    assert_sound(trial)
    assert trial.posts == 2
    assert trial.doubts == ["retry"]
    assert (trial.booked_tokens, trial.unknown) == (trial.billed_tokens, 1)


@pytest.mark.parametrize(
    ("kind", "stream", "kill"),
    [
        (kind, stream, kill)
        for kind in KINDS
        if kind != "background"
        for stream, kill in (
            (False, (SENT, 1)),
            (True, ("stream.after_delta", 2)),
            (kind == "foreground", ("llm.after_response", 1)),
        )
    ],
)
async def test_where_nothing_can_be_fetched_it_is_paid_twice_at_most(
    forks: Any, tmp_path: Path, kind: str, *, stream: bool, kill: Kill
) -> None:
    """In the foreground: sent again, the doubt is flagged and in the books as unknown."""
    trial = await killed(forks, tmp_path, kind, kill, stream=stream)

    assert_sound(trial)
    assert trial.posts == 3
    assert trial.doubts == ["retry"]
    assert trial.unknown == 1
    assert not any(isinstance(e, ev.ActivityProgressed) for e in trial.facts.events)

"""A process that dies while runs wait for one answer: another call takes over, and is paid once."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import agentflow
from agentflow.testing.facts import read_file
from agentflow.testing.invariants import problems
from agentflow.testing.loopback import Answer, Fault, LoopbackServer, Seen
from tests.crash.inflight import Asking, asking, live_asking, processes

pytestmark = [pytest.mark.crash, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
RUNS = 8
_LIFE_SECONDS = 25.0


@pytest.fixture(scope="module")
def forks() -> Iterator[Any]:
    """What makes processes; the server that forks them needs to find the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        yield processes()


@pytest.mark.parametrize(
    ("point", "hit", "posts"),
    [
        ("llm.before_send", 1, 1),  # nothing was sent
        ("sent", 1, 2),  # the vendor has it, its answer is lost
        ("llm.after_response", 1, 2),  # between the answer and its record
        ("outcome.before_delivery", 1, 2),
        ("append.after_payloads", 3, None),
        ("commit.after", 4, None),
        ("cache.after_read", 1, 1),  # the payer is recorded, the others are being answered
        ("cache.after_read", RUNS - 1, 1),
    ],
)
async def test_a_killed_payer_is_followed_and_everybody_is_answered(
    forks: Any, tmp_path: Path, point: str, hit: int, posts: int | None
) -> None:
    """SIGKILL anywhere: every run gets the answer, paid once, or twice where it is in doubt."""
    file = tmp_path / "r.db"
    async with agentflow.connect(f"sqlite:///{file}") as client:
        for number in range(RUNS):
            await client.start(asking, "What?", id=f"r{number}")

    def script(seen: Seen) -> Answer:
        waits = point == "sent" and seen.number == 1
        return Answer(text="the answer", fault=Fault(delay_seconds=5.0 if waits else 0.0))

    with LoopbackServer(script) as server:
        life = Asking(url=server.url, database=str(file), runs=RUNS)
        process = forks.Process(target=live_asking, args=(life, point, hit))
        process.start()
        if point == "sent":
            while not server.requests and process.is_alive():  # noqa: ASYNC110 -- no event
                await asyncio.sleep(0.002)
            os.kill(process.pid, signal.SIGKILL)
        process.join(_LIFE_SECONDS)
        assert process.exitcode == -signal.SIGKILL, "it did not get there"
        last = forks.Process(target=live_asking, args=(life, "", 0))
        last.start()
        last.join(_LIFE_SECONDS)
        assert last.exitcode == 0
        paid = len(server.requests)

    facts = read_file(file)
    assert [run.row["status"] for run in facts.runs] == ["completed"] * RUNS
    assert problems(file) == []
    doubts = sum(row.kind == "ActivityInDoubt" for run in facts.runs for row in run.rows)
    assert paid == posts if posts is not None else paid <= 1 + doubts
    ledger = [a for run in facts.runs for a in run.attempts]
    reused = sum(a["cost_status"] == "cached" for a in ledger)
    unknown = sum(a["cost_status"] == "unknown_usage" for a in ledger)
    assert (reused, len(ledger)) == (RUNS - 1, RUNS + unknown)
    assert unknown <= 1
    with closing(sqlite3.connect(file)) as db:
        assert db.execute("SELECT count(*) FROM cache_waits").fetchone() == (0,)
        ((claimed_by, paid_by),) = db.execute("SELECT claimed_by, paid_by FROM cached_answers")
        assert claimed_by is None
        assert paid_by in {run.row["id"] for run in facts.runs}

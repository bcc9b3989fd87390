"""Model calls in flight when their process is killed: paid once where the vendor allows it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from agentflow.llm.stream import StreamItem
from tests.crash.inflight import TURNS, Trial, killed, processes
from tests.crash.inflight_table import COLUMNS, ROWS, Column, Row, trial_of, verdict

pytestmark = [pytest.mark.crash, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def forks() -> Iterator[Any]:
    """What makes processes; the server that forks them needs to find the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        yield processes()


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


@pytest.mark.parametrize(
    ("row", "column"),
    [
        pytest.param(row, column, id=f"{row.title}: {column.title}")
        for row in ROWS
        for column in COLUMNS
        if row.has(column)
    ],
)
async def test_a_call_in_flight(forks: Any, tmp_path: Path, row: Row, column: Column) -> None:
    """Paid once where the vendor allows it; else twice at most, flagged, and with its bound."""
    trial = await trial_of(forks, tmp_path, row, column)

    assert_sound(trial)
    assert trial.posts - 1 == row.paid(column)
    assert verdict(trial, row, column) in {"1", "2, flagged"}
    if not row.is_doubtful(column):
        assert (trial.booked_tokens, trial.unknown) == (trial.billed_tokens, 0)
        assert trial.doubtful_pico_usd == 0
    else:
        assert trial.unknown == (0 if row.kind == "stored" and column.kill is None else 1)
        assert trial.doubtful_pico_usd > 0


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


@pytest.mark.parametrize(("stream", "hit"), [(False, 2), (True, 2)])
async def test_the_second_call_is_like_the_first(
    forks: Any, tmp_path: Path, *, stream: bool, hit: int
) -> None:
    """Behind a tool, too."""
    kill = ("llm.after_ref", hit)
    trial = await killed(forks, tmp_path, "background", kill, stream=stream)

    assert_sound(trial)
    assert (trial.posts, trial.doubts) == (2, ["resume"])
    assert [a["status"] for a in trial.ledger] == ["ok", "ok"]

"""What every store must do when histories are pruned; subclass it beside `StoreConformance`."""

# ruff: noqa: S101, PLR2004 -- tests, shipped for other adapters

from __future__ import annotations

from pathlib import Path
from typing import Any

from agentflow.codec import Codec, Parts, Payload, PlainCipher
from agentflow.errors import FencedError, HistoryPrunedError
from agentflow.history.events import ActivityCompleted, RunReopened
from agentflow.ledger.reports import CostQuery
from agentflow.llm.messages import Messages, user
from agentflow.protocols import Store
from agentflow.stored import RunFilter, RunRow
from agentflow.testing.store_conformance import (
    DAY_MS,
    StoppedClock,
    World,
    entry,
    raises,
    scenario,
    scheduled,
)

LONG = "a text of its own " * 40


class RetentionConformance:
    """The contract of `Store.prune` and `Store.sweep`."""

    def make_store(self, directory: Path, clock: StoppedClock) -> Store:
        """Return a store in *directory* that is not open yet."""
        raise NotImplementedError

    async def talk(self, w: World, id: str, *said: str) -> RunRow:
        """Return a run that has said something, was billed for it, and ended."""
        row, parts = await w.own(id, input=LONG + id), Parts()
        payload = said_payload(w, parts, *said)
        fact = ActivityCompleted(key="main/f#1", attempt=1, payload=payload)
        row = await w.append(row, scheduled(), fact, parts=parts, ledger=[entry()])
        for mark in parts.on_commit:
            mark()
        await w.end(row)
        return await w.row(row)

    @scenario
    async def test_a_pruned_run_keeps_its_row_and_its_ledger(self, w: World) -> None:
        """Lists, ids and costs are as before; history and result are not there, and it says so."""
        row = await self.talk(w, "run-1", "hello")
        cost = await w.store.cost(CostQuery(by="run", project="default"))
        w.clock.ms += DAY_MS

        assert await w.store.prune([row.pk]) == 1
        assert await w.store.sweep(PlainCipher()) > 0
        after = await w.store.get_run("default", "run-1")
        assert (after.status, after.pruned_at_ms) == ("completed", w.clock.ms)
        assert (after.input, after.output) == (None, None)
        assert await w.store.cost(CostQuery(by="run", project="default")) == cost
        assert len(await w.store.ledger("default", "run-1")) == 1
        await raises(HistoryPrunedError, w.store.history(row.pk))
        await raises(HistoryPrunedError, w.store.export_run(row.pk, PlainCipher()))
        assert await w.store.list_runs(RunFilter(has_history=True)) == []
        ((again, is_new),) = await w.store.start([w.new("run-1", input="other")])
        assert (again.id, is_new) == ("run-1", False)

    @scenario
    async def test_a_run_that_is_alive_or_has_just_ended_is_not_pruned(self, w: World) -> None:
        """Whatever the caller believes."""
        alive = await w.own("alive")
        w.clock.ms += DAY_MS
        ended = await self.talk(w, "ended", "hello")

        assert await w.store.prune([alive.pk, ended.pk]) == 0
        assert len(await w.kinds(ended)) == 4

    @scenario
    async def test_what_another_run_shares_is_not_swept(self, w: World) -> None:
        """Two runs said the same; it goes with the second of them."""
        first = await self.talk(w, "first", "shared", "mine")
        second = await self.talk(w, "second", "shared", "yours")
        w.clock.ms += DAY_MS
        await w.store.prune([first.pk])
        await w.store.sweep(PlainCipher())

        assert read_back(w, await completed(w, second)) == ["shared", "yours"]
        assert await w.store.verify(second.pk, PlainCipher()) == []
        await w.store.prune([second.pk])
        await w.store.sweep(PlainCipher())
        facts = (await w.store.checkup()).facts
        assert (facts["bodies"], facts["nodes"]) == (0, 0)

    @scenario
    async def test_a_pruned_run_comes_back_from_its_export(self, w: World) -> None:
        """With its history, and its ledger is there once."""
        row = await self.talk(w, "run-1", "hello")
        lines = await w.store.export_run(row.pk, PlainCipher())
        w.clock.ms += DAY_MS
        await w.store.prune([row.pk])
        await w.store.sweep(PlainCipher())
        back = await w.store.import_run(lines)

        assert (back.pk, back.pruned_at_ms) == (row.pk, None)
        assert read_back(w, await completed(w, row)) == ["hello"]
        assert len(await w.store.ledger("default", "run-1")) == 1
        assert await w.store.verify(row.pk, PlainCipher()) == []

    @scenario
    async def test_a_run_that_was_pruned_meanwhile_cannot_be_reopened(self, w: World) -> None:
        """Who read its history before is fenced."""
        row = await self.talk(w, "run-1", "hello")
        w.clock.ms += DAY_MS
        await w.store.prune([row.pk])

        reopening = w.batch(row, [RunReopened(at_seq=1, reason="retry")], status="pending")
        await raises(FencedError, w.store.append(reopening))


def said_payload(w: World, parts: Parts, *said: str) -> Payload:
    """Return a conversation as a payload."""
    talk = Messages([user(LONG + text) for text in said])
    return w.codec.encode(talk, Messages, parts, what="talk")


async def completed(w: World, row: RunRow) -> Any:
    """Return the payload of the run's only result."""
    stored = await w.store.history(row.pk, whole=True)
    return next(e.payload for e in stored.events if isinstance(e, ActivityCompleted))


def read_back(w: World, payload: Payload) -> list[str]:
    """Return what was said, read from the store."""
    talk = Codec().decode(payload, Messages, w.store, what="talk")
    return [message.text.removeprefix(LONG) for message in talk]

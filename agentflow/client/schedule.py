"""Schedules from outside: make, change, list, trigger, delete."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

from agentflow.client.operation import (
    DEFAULT_QUEUE,
    Operator,
    checked_key,
    checked_name,
    checked_priority,
)
from agentflow.client.run import Run
from agentflow.codec import Parts
from agentflow.engine.definitions import Workflow
from agentflow.errors import StoreError, UsageError
from agentflow.firing import firing_of
from agentflow.ledger.budgets import OnExhausted, limits
from agentflow.timetable import OVERLAPS, Decision, Overlap, Schedule, Timetable, checked

Schedules = list[Schedule]

_DAY = timedelta(days=1)
_MS = timedelta(milliseconds=1)
_TRIES = 20  # another writer changed the schedule in between, each time


class Scheduling(Operator):
    """The part of a client that is about schedules."""

    async def schedule(  # noqa: PLR0913 -- the public keywords of a schedule
        self,
        name: str,
        workflow: Workflow[..., Awaitable[Any]],
        /,
        *args: Any,
        cron: str = "",
        every: timedelta | None = None,
        timezone: str = "UTC",
        overlap: Overlap = "skip",
        catch_up: timedelta = _DAY,
        queue: str | None = None,
        priority: int = 0,
        concurrency_key: str | None = None,
        tags: Sequence[str] = (),
        budget_usd: Decimal | str | int | None = None,
        budget_tokens: int | None = None,
        on_exhausted: OnExhausted = "pause",
        **kwargs: Any,
    ) -> Schedule:
        """Make a schedule, or change the one that has this name.

        What is called at each start of a program changes nothing if nothing has changed: the next
        due time stays, and so does a pause. Another timetable counts from now.

        Args:
            name: Unique in the project; the ids of its runs begin with it.
            workflow: What is started; only workers that have it fire the schedule.
            *args: Its arguments, the same for each run.
            cron: Minute, hour, day, month, weekday, such as ``0 9 * * mon-fri``.
            every: An interval instead, a second or longer, counted from now.
            timezone: IANA name of the zone that *cron* is read in.
            overlap: What happens at a due time while the last run is still going: ``skip`` it,
                ``buffer`` one until that run has ended, ``cancel`` that run and start behind its
                end, or ``allow`` both.
            catch_up: How late a run may be started where no worker was there. Several due times
                that were missed together are one run, with ``allow`` each is one.
            queue: Queue of the runs; the workflow's own, else ``default``.
            priority: Among runs that are due, a higher number goes first.
            concurrency_key: Whose runs they are; what the workflow's ``key=`` says by default.
            tags: Words by which lists and costs are grouped.
            budget_usd: What each run and its child runs may spend, in dollars; no float.
            budget_tokens: How many tokens they may use, input and output together.
            on_exhausted: What happens to a call that does not fit; see `start`.
            **kwargs: The workflow's arguments by name.

        Returns:
            The schedule as it stands.

        Raises:
            UsageError: the timetable or an argument makes no sense.
        """
        if overlap not in OVERLAPS:
            msg = f"overlap={overlap!r} is none of {', '.join(OVERLAPS)}"
            raise UsageError(msg)
        seams, parts = self._seams, Parts()
        now = seams.clock.now_ms()
        table = checked(
            Timetable(
                cron=" ".join(cron.split()), timezone=timezone if cron else "UTC",
                every_ms=(every or timedelta()) // _MS, anchor_ms=0 if cron else now,
            )
        )  # fmt: skip
        arguments = workflow.bind(args, kwargs)
        limited = limits(budget_usd, budget_tokens, on_exhausted)
        wanted = Schedule(
            project=seams.project,
            name=checked_name(name),
            workflow=workflow.name,
            table=table,
            overlap=overlap,
            catch_up_ms=max(timedelta(), catch_up) // _MS,
            payload=seams.codec.encode_fields(
                arguments, workflow.annotations, parts, what=f"{workflow.name}() argument"
            ),
            queue=checked_name(queue or workflow.queue or DEFAULT_QUEUE),
            priority=checked_priority(priority),
            concurrency_key=checked_key(
                workflow.key_of(arguments) if concurrency_key is None else concurrency_key
            ),
            tags=tuple(tags),
            limits=None if limited.is_empty else limited,
            next_due_ms=table.after(now),
            created_at_ms=now,
        )
        return await self._save(wanted, parts)

    async def _save(self, wanted: Schedule, parts: Parts) -> Schedule:
        store = self._seams.store
        for _ in range(_TRIES):
            known = {one.name: one for one in await store.schedules(wanted.project)}
            old = known.get(wanted.name)
            new = wanted if old is None else _changed(old, wanted)
            if new == old or await store.save_schedule(new, parts):
                return replace(new, version=new.version + (new != old))
        raise StoreError(_contended(wanted.name))

    async def _change(self, name: str, change: Callable[[Schedule], Schedule]) -> Schedule:
        store = self._seams.store
        for _ in range(_TRIES):
            (old,) = await store.schedules(self._seams.project, name)
            new = change(old)
            if new == old or await store.save_schedule(new, Parts()):
                return replace(new, version=new.version + (new != old))
        raise StoreError(_contended(name))

    async def schedules(self) -> Schedules:
        """Return the schedules of the project, by name.

        Returns:
            The schedules as they stand.
        """
        return await self._seams.store.schedules(self._seams.project)

    async def pause_schedule(self, name: str) -> Schedule:
        """Let nothing of a schedule be due until it is unpaused; runs that go on, go on.

        Args:
            name: The schedule.

        Returns:
            The schedule as it stands.

        Raises:
            NotFoundError: there is none of that name.
        """
        return await self._change(name, lambda one: replace(one, paused=True, buffered_due_ms=None))

    async def unpause_schedule(self, name: str) -> Schedule:
        """Go on with the next due time from now; those in between are not made up for.

        Args:
            name: The schedule.

        Returns:
            The schedule as it stands.

        Raises:
            NotFoundError: there is none of that name.
        """
        now = self._seams.clock.now_ms()

        def unpaused(one: Schedule) -> Schedule:
            if not one.paused:
                return one
            return replace(one, paused=False, next_due_ms=one.table.after(now))

        return await self._change(name, unpaused)

    async def trigger_schedule(self, name: str) -> Run[Any]:
        """Start a run of a schedule now, whatever its timetable and its last run say.

        Args:
            name: The schedule; it may be paused.

        Returns:
            The run.

        Raises:
            NotFoundError: there is none of that name.
            StoreError: others change it all the time.
        """
        store = self._seams.store
        for _ in range(_TRIES):
            (one,) = await store.schedules(self._seams.project, name)
            now = self._seams.clock.now_ms()
            decision = Decision(
                starts=(now,), next_due_ms=one.next_due_ms, buffered_due_ms=one.buffered_due_ms
            )
            workflow = self._seams.registry.workflows.get(one.workflow)
            firing = firing_of(one, decision, now_ms=now, workflow=workflow)
            if await store.fire(firing):
                row = await store.get_run(one.project, firing.starts[0].id)
                return Run(self._seams, row)
        raise StoreError(_contended(name))

    async def delete_schedule(self, name: str) -> None:
        """Delete a schedule; its runs stay, and go on.

        Args:
            name: The schedule.

        Raises:
            NotFoundError: there is none of that name.
        """
        await self._seams.store.delete_schedule(self._seams.project, name)


def _changed(old: Schedule, wanted: Schedule) -> Schedule:
    """Return *old* as *wanted* says, with its memory of what was started."""
    same = replace(old.table, anchor_ms=0) == replace(wanted.table, anchor_ms=0)
    return replace(
        wanted,
        table=old.table if same else wanted.table,
        next_due_ms=old.next_due_ms if same else wanted.next_due_ms,
        paused=old.paused,
        last_due_ms=old.last_due_ms,
        last_run_id=old.last_run_id,
        buffered_due_ms=old.buffered_due_ms if old.overlap == wanted.overlap else None,
        started=old.started,
        skipped=old.skipped,
        missed=old.missed,
        created_at_ms=old.created_at_ms,
        version=old.version,
    )


def _contended(name: str) -> str:
    return f"schedule {name!r} was changed by others {_TRIES} times in a row"

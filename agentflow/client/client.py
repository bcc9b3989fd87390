"""Start, find and steer runs; approvals, money, budgets: what is not of one run alone."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable, Sequence
from datetime import datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any, ParamSpec, TypeVar, cast

from agentflow import ids
from agentflow.client.operation import (
    DEFAULT_QUEUE,
    checked_key,
    checked_name,
    checked_priority,
)
from agentflow.client.run import Run
from agentflow.client.schedule import Scheduling
from agentflow.codec import Codec, Parts
from agentflow.engine.definition import Latency, check_latency
from agentflow.engine.definitions import Workflow
from agentflow.engine.limits import Limits, recorded_limits
from agentflow.errors import (
    InputMismatchError,
    NotFoundError,
    UsageError,
)
from agentflow.history import events as ev
from agentflow.ledger.budgets import SCOPES, Budget, OnExhausted, Scope
from agentflow.ledger.budgets import limits as budget_limits
from agentflow.ledger.cache import CacheGroup
from agentflow.ledger.entries import adjustment
from agentflow.ledger.reports import CostGroup, CostQuery, LedgerRow
from agentflow.ledger.spending import Spending
from agentflow.protocols import Store
from agentflow.stored import (
    Approval,
    Booking,
    BudgetChange,
    LedgerWrite,
    Message,
    NewRun,
    RunFilter,
    RunRow,
)
from agentflow.sync_point import sync_point

P = ParamSpec("P")
R = TypeVar("R")

Rows = list[RunRow]  # spelt here: inside Client, `list` is its method
Approvals = list[Approval]
Groups = list[CostGroup]
Budgets = list[Budget]
CacheGroups = list[CacheGroup]

_PAGE = 2000  # entries of the ledger that are read at once


class Client(Scheduling):
    """Everything that can be done with runs from outside; see `agentflow.connect`."""

    @property
    def store(self) -> Store:
        """The store, for tools that read it."""
        return self._seams.store

    @property
    def project(self) -> str:
        """The project that ids belong to."""
        return self._seams.project

    @property
    def codec(self) -> Codec:
        """The codec, for tools that read payloads."""
        return self._seams.codec

    async def start(  # noqa: PLR0913 -- the public keywords of a start
        self,
        workflow: Workflow[..., Awaitable[R]],
        *args: Any,
        id: str | None = None,
        project: str | None = None,
        tags: Sequence[str] = (),
        queue: str | None = None,
        priority: int = 0,
        concurrency_key: str | None = None,
        delay: timedelta | float | None = None,
        budget_usd: Decimal | str | int | None = None,
        budget_tokens: int | None = None,
        on_exhausted: OnExhausted = "pause",
        latency: Latency | None = None,
        limits: Limits | None = None,
        **kwargs: Any,
    ) -> Run[R]:
        """Start a run, or return the one that has this id.

        Args:
            workflow: A function decorated with @workflow.
            *args: Its arguments.
            id: The run's id, unique in the project; a new UUIDv7 by default.
            project: Project of the run; the client's by default.
            tags: Words by which lists and costs are grouped.
            queue: Name of the queue; the workflow's own, else ``default``.
            priority: Among runs that are due, a higher number goes first.
            concurrency_key: Whose run it is (a user, a tenant): keys take turns, and limits may
                count them; what the workflow's ``key=`` says by default.
            delay: Do not begin before; a timedelta or seconds.
            budget_usd: What the run and its child runs may spend, in dollars; text or Decimal, no
                float. A new run's only: `set_budget` changes it.
            budget_tokens: How many tokens they may use, input and output together.
            on_exhausted: What happens to a call that does not fit: ``pause`` the run until
                somebody raises the budget, ``raise`` BudgetError, or ``clamp`` its answer.
            latency: How long answers of models may take, in this run and its child runs, where
                their code does not say: ``now``, or ``2h``, ``8h``, ``24h`` for less money.
            limits: Calls, tokens, depth, time and repeats that the run may use; the workflow's
                ``limits=`` by default. A new run's only.
            **kwargs: The workflow's arguments by name.

        Returns:
            A handle; the run is durable when this returns.

        Raises:
            InputMismatchError: the id belongs to another workflow or to another input.
            EncodeError: an argument has no JSON form.
            UsageError: the arguments do not fit the workflow.
        """
        if not isinstance(cast("object", workflow), Workflow):
            msg = f"start() takes a workflow, not {workflow!r}"
            raise UsageError(msg, hint="Decorate the function with @agentflow.workflow.")
        check_latency(latency, where="start()")
        budget = budget_limits(budget_usd, budget_tokens, on_exhausted)
        seams, parts = self._seams, Parts()
        now = seams.clock.now_ms()
        start_at_ms = now + _ms(delay) if delay else 0
        run_id = id or ids.new_run_id()
        arguments = workflow.bind(args, kwargs)
        payload = seams.codec.encode_fields(
            arguments, workflow.annotations, parts, what=f"{workflow.name}() argument"
        )
        key = workflow.key_of(arguments) if concurrency_key is None else concurrency_key
        started = ev.RunStarted(
            time_ms=now, actor=seams.actor, payload=payload, workflow=workflow.name,
            seed=ids.new_message_id(), workflow_version=workflow.version,
            python_version=_python_version(), logic_flags=[], latency=latency,
            limits=recorded_limits(limits or workflow.limits, start_ms=start_at_ms or now),
        )  # fmt: skip
        new = NewRun(
            project=project or seams.project, id=run_id, workflow=workflow.name, started=started,
            parts=parts, start_at_ms=start_at_ms, tags=tuple(tags),
            queue=checked_name(queue or workflow.queue or DEFAULT_QUEUE),
            priority=checked_priority(priority), concurrency_key=checked_key(key),
            limits=None if budget.is_empty else budget,
        )  # fmt: skip
        sync_point("start.before")
        ((row, is_new),) = await seams.store.start([new])
        sync_point("start.after")
        if not is_new:
            self._check_same(row, workflow, payload.digest)
        return Run(seams, row)

    def _check_same(self, row: RunRow, workflow: Workflow[..., Any], digest: bytes) -> None:
        if row.workflow != workflow.name:
            msg = f"run {row.id!r} is a run of {row.workflow!r}, not of {workflow.name!r}"
            raise InputMismatchError(msg)
        if row.pruned_at_ms is not None:
            return  # its input is gone too: the id is all that is left to compare
        if row.input is None or row.input.digest != digest:
            was = self._shown(row)
            msg = f"run {row.id!r} was started with other input: {was}"
            raise InputMismatchError(msg)

    def _shown(self, row: RunRow) -> str:
        if row.input is None:
            return "none"
        text = self._seams.codec.plain(row.input, self._seams.store).decode()
        return text if len(text) <= 200 else text[:200] + "…"  # noqa: PLR2004 -- one line

    async def get(self, id: str) -> Run[Any]:
        """Return the run with this id, a unique prefix of it, or ``@last``.

        Args:
            id: The id; a prefix needs 6 characters or more.

        Returns:
            A handle.

        Raises:
            NotFoundError: there is none. AmbiguousIdError: there are several.
        """
        return Run(self._seams, await self._seams.store.get_run(self._seams.project, id))

    async def list(
        self,
        *,
        workflow: str | None = None,
        status: str | Sequence[str] = (),
        tag: str | None = None,
        attributes: dict[str, Any] | None = None,
        since: datetime | None = None,
        limit: int = 100,
    ) -> Rows:
        """Return runs of the project, newest first.

        Args:
            workflow: Only of this workflow.
            status: Only with this status, or one of these.
            tag: Only with this tag.
            attributes: Only with these attribute values.
            since: Only started from this aware time on.
            limit: Number of runs at most.

        Returns:
            Rows, newest first.
        """
        return await self._seams.store.list_runs(
            RunFilter(
                project=self._seams.project,
                workflow=workflow,
                statuses=(status,) if isinstance(status, str) else tuple(status),
                tag=tag,
                attributes=attributes or {},
                since_ms=int(since.timestamp() * 1000) if since else None,
                limit=limit,
            )
        )

    async def approvals(self, *, run_id: str | None = None, pending_only: bool = True) -> Approvals:
        """Return questions to people, oldest first.

        Args:
            run_id: Only of this run.
            pending_only: Only those that nobody has decided.

        Returns:
            The approvals.
        """
        return await self._seams.store.list_approvals(
            self._seams.project, run_id=run_id, pending_only=pending_only
        )

    async def decide(
        self,
        approval_id: str,
        *,
        approved: bool,
        reason: str = "",
        actor: str | None = None,
        arguments: dict[str, Any] | None = None,
    ) -> Approval:
        """Approve or deny, once.

        Args:
            approval_id: The approval's id or a unique prefix of it.
            approved: Whether the answer is yes.
            reason: Shown to the code and the model.
            actor: Who decides.
            arguments: For a tool call: run it with these arguments instead.

        Returns:
            The approval after the decision.

        Raises:
            NotFoundError: there is no such approval.
            UsageError: it was decided before, or the run has moved on.
        """
        parts, payload = Parts(), None
        if arguments is not None:
            payload = self._seams.codec.encode(arguments, Any, parts, what="edited arguments")
        message = Message(
            id=ids.new_message_id(), kind="approval", name=approval_id,
            actor=actor or self._seams.actor, payload=payload, parts=parts,
            data={"decision": "approved" if approved else "denied", "reason": reason},
        )  # fmt: skip
        sync_point("decide.before")
        decided = await self._seams.store.decide(self._seams.project, approval_id, message)
        sync_point("decide.after")
        return decided

    async def set_budget(
        self,
        scope: Scope,
        name: str,
        limit_usd: Decimal | str | int | None = None,
        *,
        limit_tokens: int | None = None,
        on_exhausted: OnExhausted | None = None,
    ) -> Budget:
        """Make a budget or change its limits; calls that waited for room go on.

        Args:
            scope: ``run`` (without child runs), ``tree`` (a run with its child runs), ``agent``,
                ``tag`` or ``day``.
            name: Run's id, agent's name, tag, or day: ``2026-11-23``, or ``every`` for each one.
            limit_usd: The ceiling in dollars; text or Decimal, no float. None = as before.
            limit_tokens: The ceiling in tokens. None = as before.
            on_exhausted: ``pause``, ``raise`` or ``clamp``. None = as before, ``pause`` if new.

        Returns:
            The budget as it stands.

        Raises:
            UsageError: less than is spent and held already, or no exact amount.
            NotFoundError: there is no such run.
        """
        _check_scope(scope)
        change = budget_limits(limit_usd, limit_tokens, on_exhausted)
        return await self._seams.store.set_budget(
            BudgetChange(project=self._seams.project, scope=scope, name=name, limits=change)
        )

    async def raise_budget(
        self,
        scope: Scope,
        name: str,
        by_usd: Decimal | str | int | None = None,
        *,
        by_tokens: int | None = None,
    ) -> Budget:
        """Add to the limits of a budget; calls that waited for room go on.

        Args:
            scope: See `set_budget`.
            name: See `set_budget`.
            by_usd: Dollars to add; text or Decimal, no float.
            by_tokens: Tokens to add.

        Returns:
            The budget as it stands.

        Raises:
            NotFoundError: there is no such budget. UsageError: it has no such limit.
        """
        _check_scope(scope)
        change = budget_limits(by_usd, by_tokens)
        return await self._seams.store.set_budget(
            BudgetChange(
                project=self._seams.project, scope=scope, name=name, limits=change, is_raise=True
            )
        )

    async def budgets(self, *, run_id: str | None = None) -> Budgets:
        """Return budgets with what is spent and held, by scope and name.

        Args:
            run_id: Only those that limit this run; all of the project by default.

        Returns:
            The budgets.
        """
        return await self._seams.store.budgets(self._seams.project, run_id=run_id)

    async def cache_stats(self) -> CacheGroups:
        """Return what the project's cache across runs holds and has saved, by model.

        Returns:
            One group per model, by name.
        """
        return await self._seams.store.cache_groups(self._seams.project)

    async def clear_cache(
        self, *, older_than: timedelta | None = None, model: str | None = None
    ) -> int:
        """Forget answers of the cache across runs, so that equal requests are asked again.

        Args:
            older_than: Only answers that are older; all by default.
            model: Only answers of this model, ``provider:name`` as asked.

        Returns:
            Number of answers that were forgotten.
        """
        seams = self._seams
        before_ms = None if older_than is None else seams.clock.now_ms() - _ms(older_than)
        return await seams.store.clear_cache(seams.project, before_ms=before_ms, model=model)

    async def cost(self, query: CostQuery) -> Groups:
        """Return the ledger summed by group, the dearest first.

        Args:
            query: What is summed, and by what.

        Returns:
            One sum per group; see `agentflow.ledger.reports.coverage` for what it covers.
        """
        return await self._seams.store.cost(query)

    async def spending(self, query: CostQuery) -> Spending:
        """Return a total, what of it was wasted, and what was saved: one scan of the ledger.

        Args:
            query: What is summed; its groups do not matter.

        Returns:
            Exact sums of what is known, with the number of attempts that are not.
        """
        return await self._seams.store.spending(query)

    async def entries(self, query: CostQuery | None = None) -> AsyncIterator[LedgerRow]:
        """Yield the attempts and adjustments of the ledger with their cost lines.

        Args:
            query: Which ones; all of the project by default.

        Yields:
            Entries run by run, each run's in the order of writing.
        """
        wanted = query or CostQuery(project=self._seams.project)
        after = (0, 0)
        while found := await self._seams.store.entries(wanted, after=after, limit=_PAGE):
            for row in found:
                yield row
            after = (found[-1].run_pk, found[-1].n)

    async def adjust(
        self,
        run_id: str,
        amount_usd: Decimal | str | int,
        *,
        reason: str,
        key: str = "",
        attempt: int | None = None,
        id: str | None = None,
        actor: str | None = None,
    ) -> bool:
        """Book an amount to a run, beside what was priced; nothing in the ledger is ever edited.

        Args:
            run_id: The run's id, a unique prefix of it, or ``@last``.
            amount_usd: Signed US dollars, exact; negative is a credit. No float.
            reason: Why; shown wherever the amount is.
            key: The call that it is about, if it is about one.
            attempt: Its attempt, a 1-based number; the last one by default.
            id: The same id is booked once; a new one by default.
            actor: Who books it.

        Returns:
            Whether it is new; False where *id* was booked before.

        Raises:
            NotFoundError: there is no such run, or no such attempt in its ledger.
            UsageError: the amount is no exact amount, or zero although no call is named, or there
                is no reason.
        """
        if isinstance(cast("object", amount_usd), float | bool):
            msg = f"{amount_usd!r} is not exact"
            raise UsageError(msg, hint='Write amounts as text, such as "-0.31", or Decimal.')
        seams = self._seams
        row = await (await self.get(run_id)).info()
        about = await self._billed(row, key, attempt) if key else None
        record = adjustment(
            _decimal(amount_usd),
            reason=reason,
            actor=actor or seams.actor or "",
            id=id or ids.new_message_id(),
            model=(about.record.model_served or about.record.model_asked) if about else "",
            settles=about is not None,
        )
        entry = LedgerWrite(
            key=key,
            attempt=about.attempt if about else 0,
            at_ms=seams.clock.now_ms(),
            record=record,
        )
        return await seams.store.adjust(row.project, row.id, entry)

    async def book(
        self,
        id: str,
        entries: Sequence[LedgerWrite],
        *,
        kind: str,
        input: Any,
        output: Any,
        actor: str | None = None,
    ) -> tuple[RunRow, bool]:
        """Book amounts that belong to no run, as a run of their own that has ended.

        Args:
            id: The run's id; what is booked under it once is not booked again.
            entries: The amounts; see `agentflow.ledger.entries.adjustment`.
            kind: What the run's workflow is called, such as ``agentflow.reconcile``.
            input: What was compared, as JSON values; recorded.
            output: What was accepted, as JSON values; recorded.
            actor: Who books them.

        Returns:
            The run's row, and whether it is new.
        """
        seams, before, after = self._seams, Parts(), Parts()
        now, by = seams.clock.now_ms(), actor or seams.actor
        started = ev.RunStarted(
            time_ms=now, actor=by, workflow=kind, seed=ids.new_message_id(), logic_flags=[],
            payload=seams.codec.encode(input, Any, before, what="booking"),
        )  # fmt: skip
        completed = ev.RunCompleted(
            time_ms=now, actor=by, payload=seams.codec.encode(output, Any, after, what="booking")
        )
        run = NewRun(project=seams.project, id=id, workflow=kind, started=started, parts=before)
        return await seams.store.book(
            Booking(run=run, completed=completed, parts=after, ledger=tuple(entries))
        )

    async def _billed(self, row: RunRow, key: str, attempt: int | None) -> LedgerRow:
        """Return the entry of an attempt, by default of the call's last one."""
        rows = await self._seams.store.ledger(row.project, row.id)
        found = [r for r in rows if r.key == key and r.record.kind != "adjustment"]
        if attempt is not None:
            found = [r for r in found if r.attempt == attempt]
        if not found:
            which = key if attempt is None else f"{key} attempt {attempt}"
            msg = f"the ledger of run {row.id} has no {which}"
            raise NotFoundError(msg, hint=f"See `agentflow explain {row.id}`.")
        return found[-1]


def _decimal(amount: Decimal | str | int) -> Decimal:
    try:
        return Decimal(amount)
    except InvalidOperation:
        msg = f"{amount!r} is no amount of dollars"
        raise UsageError(msg, hint="Write it as -0.31.") from None


def _check_scope(scope: str) -> None:
    if scope not in SCOPES:
        msg = f"scope {scope!r} is none of {', '.join(SCOPES)}"
        raise UsageError(msg)


def _ms(span: timedelta | float) -> int:
    seconds = span.total_seconds() if isinstance(span, timedelta) else span
    return int(seconds * 1000)


def _python_version() -> str:
    return ".".join(map(str, sys.version_info[:3]))
